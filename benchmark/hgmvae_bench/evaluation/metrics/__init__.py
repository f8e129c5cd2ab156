"""The suite's own metrics; `hgmvae_bench.plugins.registry.METRICS` finds them by name."""
