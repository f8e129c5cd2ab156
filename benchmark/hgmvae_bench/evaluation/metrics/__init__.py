"""Metrics of the suite, which `hgmvae_bench.plugins.registry.METRICS` finds by name."""
