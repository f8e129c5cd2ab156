"""What a baseline asks of the suite's network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pythae.models.nn import BaseDecoder, BaseEncoder


class Network(Protocol):
    """The parts of the network that a baseline asks for when it is built."""

    def point_encoder(self, latent_dim: int) -> BaseEncoder:
        """Encoder to ``embedding`` (B, ``latent_dim``)."""

    def gaussian_encoder(self, latent_dim: int) -> BaseEncoder:
        """Encoder to ``embedding`` and ``log_covariance`` (B, ``latent_dim``)."""

    def decoder(self, latent_dim: int) -> BaseDecoder:
        """Decoder from latents (B, ``latent_dim``) to ``reconstruction``, images in [0, 1]."""
