"""The convolutional network that the suite hands to every model."""
