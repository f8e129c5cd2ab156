"""The suite's own metrics; `hgmvae_bench.registry.METRICS` finds them by name."""
