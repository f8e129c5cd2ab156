"""Default trunk of HGMVAE, for use without the suite's networks."""

from __future__ import annotations

import math

from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseEncoder
from torch import Tensor, nn


class FeatureMLP(BaseEncoder):  # type: ignore[misc]
    """Default trunk: one hidden layer from images of any shape to features (B, 512)."""

    feature_dim = 512

    def __init__(self, input_dim: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(input_dim), self.feature_dim), nn.ReLU()
        )

    def forward(self, x: Tensor) -> ModelOutput:
        """Map images (B, ...) to ``embedding``, the features (B, 512)."""
        return ModelOutput(embedding=self.layers(x))
