"""Evaluation of a trained model: its outputs, the metrics, and the controls beside the models."""
