"""Training: loop, stacked seeds, checkpoints, precision and the shared network."""
