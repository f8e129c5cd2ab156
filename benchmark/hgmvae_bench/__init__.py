"""hgmvae-bench: a benchmark suite for generation and clustering with the VAE family."""

from importlib.metadata import version

__version__ = version("hgmvae-bench")
