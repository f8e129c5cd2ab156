"""Comparison of a grid's runs with a stored baseline."""
