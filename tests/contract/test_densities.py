"""Contract of the densities that models give to metrics of likelihood."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pythae.models.normalizing_flows import PlanarFlow
from torch import Tensor
from torch.distributions import MultivariateNormal

from hgmvae_bench.evaluation.densities import posterior_sampler
from hgmvae_bench.plugins.protocols import (
    HasLatentPosterior,
    HasPosteriorDensity,
    HasPriorDensity,
    MetricMissingError,
    ParametricModel,
)
from hgmvae_bench.plugins.registry import MODELS, resolve_model
from hgmvae_bench.training.network.encoders import Network
from vae_baselines.pythae_models import ADAPTED

LATENT_DIM = 2
DETERMINISTIC = {"wae-imq", "wae-rbf", "swae", "pythae:AE", "pythae:RAE_L2", "pythae:RAE_GP"}

NAMES = [name for name in MODELS if not isinstance(MODELS[name], ParametricModel)]
OWN_NAMES = {name for name in NAMES if MODELS.entry(name).owner == "hgmvae-bench"}
NAMES += [f"pythae:{name}" for name in ADAPTED]


def build(name: str) -> Any:
    """A model whose parameters, also those of its prior, are random."""
    plugin = resolve_model(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = plugin.build(
            input_dim=(1, 32, 32),
            latent_dim=LATENT_DIM,
            reconstruction_loss="bce",
            network=Network((1, 32, 32), width=2),
            settings=plugin.settings,
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # such as the weights of a mixture
                torch.nn.init.normal_(parameter, std=0.5)
        for flow in getattr(model, "net", []):
            if isinstance(flow, PlanarFlow):  # with random parameters often not invertible
                flow.u.copy_(flow.w)
    return model.eval()


@pytest.fixture(params=[name for name in NAMES if name not in DETERMINISTIC])
def model(request: pytest.FixtureRequest) -> Any:
    """Every model whose posterior and prior have densities; both are optional for third parties."""
    model = build(request.param)
    has_densities = isinstance(model, HasPriorDensity) and isinstance(
        model, HasPosteriorDensity | HasLatentPosterior
    )
    if not has_densities and request.param not in OWN_NAMES:
        pytest.skip("the model defines no densities")
    return model


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_deterministic_models_have_no_posterior_density(name: str) -> None:
    with pytest.raises(MetricMissingError, match="deterministic encoder"):
        posterior_sampler(build(name))


@torch.no_grad()
def test_draws_and_densities_of_the_posterior_have_the_documented_shapes(model: Any) -> None:
    assert isinstance(model, HasPriorDensity)
    images = torch.rand(3, 1, 32, 32)
    latents, log_density = posterior_sampler(model)(images, 5)
    assert latents.shape[:2] == log_density.shape == (5, 3)
    assert latents.shape[2] >= LATENT_DIM
    assert isinstance(model, HasPosteriorDensity) or latents.shape[2] == LATENT_DIM
    assert log_density.isfinite().all()
    assert model.prior_log_density(latents.flatten(0, 1)).shape == (15,)


@torch.no_grad()
def test_prior_density_is_that_of_the_samples(model: Any) -> None:
    """By importance sampling: the density integrates to 1, and has the samples' moments."""
    torch.manual_seed(1)
    samples = model.sample_latent(20_000).double()
    proposal = MultivariateNormal(samples.mean(0), 2 * samples.T.cov())
    codes = proposal.sample((40_000,))
    n_auxiliary = posterior_sampler(model)(torch.rand(1, 1, 32, 32), 1)[0].shape[2] - LATENT_DIM
    auxiliary = torch.randn(len(codes), n_auxiliary).double()
    log_proposal = proposal.log_prob(codes) + standard_normal(auxiliary)
    latents = torch.cat([codes, auxiliary], dim=1).float()
    weights = (model.prior_log_density(latents).double() - log_proposal).exp()
    assert float(weights.mean()) == pytest.approx(1, abs=0.05)
    for power in (1, 2):
        moments = (weights.unsqueeze(1) * codes**power).mean(0)
        expected = (samples**power).mean(0)
        scale = float((samples**2).mean()) ** (power / 2)
        np.testing.assert_allclose(moments, expected, atol=0.1 * scale)


@torch.no_grad()
def test_posterior_density_is_that_of_the_draws(model: Any) -> None:
    """The mean ratio of a narrower density to q, over draws of q, is 1."""
    torch.manual_seed(2)
    image = torch.rand(1, 1, 32, 32)
    draws, log_density = (value.squeeze(1) for value in posterior_sampler(model)(image, 4000))
    draws = draws.double()
    narrow = MultivariateNormal(draws.mean(0), 0.5 * draws.T.cov())
    ratios = (narrow.log_prob(draws) - log_density.double()).exp()
    assert float(ratios.mean()) == pytest.approx(1, abs=0.1)


def test_planar_flows_that_are_not_invertible_have_no_density() -> None:
    model = build("pythae:VAE_LinNF")
    with torch.no_grad():
        model.net[0].u.copy_(-2 * model.net[0].w / model.net[0].w.square().sum())
        with pytest.raises(NotImplementedError, match="not invertible"):
            posterior_sampler(model)(torch.rand(1, 1, 32, 32), 2)


def standard_normal(values: Tensor) -> Tensor:
    return -0.5 * (values.square() + math.log(2 * math.pi)).sum(dim=1)
