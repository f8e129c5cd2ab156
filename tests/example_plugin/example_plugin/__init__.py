"""A model, a dataset and a metric for hgmvae-bench, as a third party would bring them.

Each lies in a module of its own; ``pyproject.toml`` registers them.
"""
