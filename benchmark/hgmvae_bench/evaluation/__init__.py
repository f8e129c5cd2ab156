"""Scoring a trained model: its outputs, the metrics and the controls."""
