"""Small HGMVAE models and their images."""

import pytest
import torch
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor

from hgmvae import HGMVAE, HGMVAEConfig

SMALL = {"input_dim": (1, 4, 4), "latent_dim": 3, "n_components": 4, "subcomponents": 2}
Z_PRIOR_WEIGHTS = (
    "mutual_information_weight",
    "component_correlation_weight",
    "dimension_correlation_weight",
    "dimension_kl_weight",
)
READINGS = [
    ("none", "none"),
    ("none", "sample_raw"),
    ("uniform", "sample_log"),
    ("shared", "batch_log"),
    ("responsibility", "none"),
    ("responsibility", "batch_log"),
    ("responsibility", "batch_log_det"),
    ("responsibility", "batch_share"),
]
PRIORS = ["gaussian", "uniform"]
every_reading = pytest.mark.parametrize(("conditional_prior", "fisher"), READINGS)
every_prior = pytest.mark.parametrize("coefficient_prior", PRIORS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(**settings: object) -> HGMVAE:
    """Build a small model."""
    return HGMVAE(HGMVAEConfig(**{**SMALL, **settings}))


def images(n_images: int = 16) -> Tensor:
    """Random images (N, 1, 4, 4)."""
    return torch.rand(n_images, 1, 4, 4)


def run(model: HGMVAE, data: Tensor, seed: int = 0, **kwargs: object) -> ModelOutput:
    """Return the output for a batch, after seeding torch."""
    torch.manual_seed(seed)
    return model({"data": data}, **kwargs)


def gradients(model: HGMVAE, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss by parameter; parameters that it does not reach are left out."""
    model.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
