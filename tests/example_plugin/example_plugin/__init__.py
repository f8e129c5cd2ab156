"""A model, a dataset and a metric for hgmvae-bench, as a third party would write them.

Each has its own module; ``pyproject.toml`` registers them.
"""
