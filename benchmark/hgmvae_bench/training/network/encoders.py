"""Convolutional encoder and decoder that every model is built on.

Section 3 of the paper specifies five 3×3 convolutions followed by two fully connected layers. The
rest is the suite's choice: stride 2, (w, 2w, 4w, 8w, 16w) channels with w = 32 by default, batch
norm and leaky ReLU after each convolution, and a decoder that mirrors the encoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from hgmvae_bench.training.network.conv import Downsampling, Upsampling

N_LAYERS = 5
STRIDE = 2**N_LAYERS


class FeatureEncoder(BaseEncoder):  # type: ignore[misc]
    """Convolutional trunk without heads: images (B, C, H, W) to features (B, F).

    As in every encoder of pythae, the features are returned as ``embedding``.

    Args:
        input_dim: image shape (C, H, W).
        width: channels of the first convolution.

    Attributes:
        feature_dim: number of features F.
    """

    def __init__(self, input_dim: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, width_px = input_dim
        widths = [channels, *(width * 2**i for i in range(N_LAYERS))]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    Downsampling(c_in, c_out, bias=False),
                    nn.BatchNorm2d(c_out),
                    nn.LeakyReLU(inplace=True),
                )
                for c_in, c_out in itertools.pairwise(widths)
            ),
            nn.Flatten(),
        )
        self.feature_dim = widths[-1] * (height // STRIDE) * (width_px // STRIDE)

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, C, H, W) in [0, 1] to ``embedding``, the features (B, F)."""
        return ModelOutput(embedding=self.layers(x))


class PointEncoder(FeatureEncoder):
    """Trunk with one head, the code, for autoencoders without a posterior variance.

    Args:
        input_dim: image shape (C, H, W).
        width: channels of the first convolution.
        latent_dim: dimensions L of the code.
    """

    def __init__(self, input_dim: tuple[int, int, int], width: int, latent_dim: int) -> None:
        super().__init__(input_dim, width)
        self.embedding = nn.Linear(self.feature_dim, latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, C, H, W) in [0, 1] to ``embedding``, the codes (B, L)."""
        return ModelOutput(embedding=self.embedding(self.layers(x)))


class GaussianEncoder(FeatureEncoder):
    """Trunk with two heads, mean and log-variance of a diagonal Gaussian posterior.

    Args:
        input_dim: image shape (C, H, W).
        width: channels of the first convolution.
        latent_dim: dimensions L of the posterior.
    """

    def __init__(self, input_dim: tuple[int, int, int], width: int, latent_dim: int) -> None:
        super().__init__(input_dim, width)
        self.mean = nn.Linear(self.feature_dim, latent_dim)
        self.log_var = nn.Linear(self.feature_dim, latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, C, H, W) in [0, 1] to ``embedding`` and ``log_covariance`` (B, L)."""
        features = self.layers(x)
        return ModelOutput(embedding=self.mean(features), log_covariance=self.log_var(features))


class ConvDecoder(BaseDecoder):  # type: ignore[misc]
    """Mirror image of the trunk: latents (B, L) to images (B, C, H, W) in [0, 1].

    Args:
        input_dim: image shape (C, H, W).
        width: channels of the encoder's first convolution.
        latent_dim: dimensions L of the latents.
    """

    def __init__(self, input_dim: tuple[int, int, int], width: int, latent_dim: int) -> None:
        super().__init__()
        channels, height, width_px = input_dim
        widths = [*(width * 2**i for i in reversed(range(N_LAYERS))), channels]
        self.grid = (widths[0], height // STRIDE, width_px // STRIDE)
        self.features = nn.Sequential(
            nn.Linear(latent_dim, self.grid[0] * self.grid[1] * self.grid[2]),
            nn.Unflatten(1, self.grid),
            nn.BatchNorm2d(self.grid[0]),
            nn.LeakyReLU(inplace=True),
        )
        hidden = (
            nn.Sequential(
                Upsampling(c_in, c_out, bias=False),
                nn.BatchNorm2d(c_out),
                nn.LeakyReLU(inplace=True),
            )
            for c_in, c_out in itertools.pairwise(widths[:-1])
        )
        self.layers = nn.Sequential(
            *hidden,
            Upsampling(widths[-2], channels),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> ModelOutput:
        """Map latents (B, L) to ``reconstruction``, images (B, C, H, W) in [0, 1]."""
        return ModelOutput(reconstruction=self.layers(self.features(z)))


@dataclass(frozen=True)
class Network:
    """Factory for the encoders and the decoder of one image shape.

    A model requests the encoder that fits its posterior. Every part is newly initialised with
    parameters from torch's global generator.

    Attributes:
        input_dim: image shape (C, H, W); H and W are multiples of 32.
        width: channels of the first convolution (32 in the paper's grid).

    Raises:
        ValueError: if a side is not a positive multiple of 32.
    """

    input_dim: tuple[int, int, int]
    width: int = 32

    def __post_init__(self) -> None:
        for side in self.input_dim[1:]:
            if side < STRIDE or side % STRIDE:
                raise ValueError(
                    f"image side {side} px does not fit the network: five stride-2 convolutions "
                    f"need a multiple of {STRIDE}; choose image_size {STRIDE} or {2 * STRIDE}"
                )

    def feature_encoder(self) -> FeatureEncoder:
        """Trunk without heads, for a model that adds its own to ``feature_dim`` features."""
        return FeatureEncoder(self.input_dim, self.width)

    def point_encoder(self, latent_dim: int) -> PointEncoder:
        """Encoder to a code (B, ``latent_dim``)."""
        return PointEncoder(self.input_dim, self.width, latent_dim)

    def gaussian_encoder(self, latent_dim: int) -> GaussianEncoder:
        """Encoder to the mean and log-variance (B, ``latent_dim``) of a Gaussian posterior."""
        return GaussianEncoder(self.input_dim, self.width, latent_dim)

    def decoder(self, latent_dim: int) -> ConvDecoder:
        """Decoder from latents (B, ``latent_dim``) to images in [0, 1]."""
        return ConvDecoder(self.input_dim, self.width, latent_dim)


def parameter_count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
