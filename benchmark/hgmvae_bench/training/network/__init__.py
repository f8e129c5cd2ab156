"""Convolutional network that every model is built on."""
