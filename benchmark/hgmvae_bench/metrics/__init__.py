"""The suite's own metrics; `hgmvae_bench.plugins.METRICS` finds them by name."""
