from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from hgmvae_bench.training.network.encoders import Network
from vae_baselines import Baseline

LATENT_DIM = 4


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Real images (64, 1, 32, 32) in [0, 1]."""
    images = torch.tensor(load_digits().images[:64], dtype=torch.float32).div(16)
    return images.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).unsqueeze(1)


@pytest.fixture
def build() -> Callable[..., Any]:
    """Function that builds a small model of a plug-in for the digits, with seed 0."""

    def build(plugin: Baseline, **settings: Any) -> Any:
        torch.manual_seed(0)
        input_dim = (1, 32, 32)
        return plugin.build(
            input_dim=input_dim,
            latent_dim=LATENT_DIM,
            reconstruction_loss="bce",
            network=Network(input_dim, width=4),
            settings=settings,
        )

    return build
