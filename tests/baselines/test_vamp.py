from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vae_baselines
from vae_baselines.vamp import mixture_log_density


def mixture(mean, log_var):
    components = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mean), dtype=mean.dtype)), components)


def test_log_prior_equals_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 7, 3, dtype=torch.float64)
    latent = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(
        mixture_log_density(latent, mean, log_var), mixture(mean, log_var).log_prob(latent)
    )


def test_reg_loss_in_evaluation_is_against_the_posteriors_of_the_pseudo_inputs(
    build, digits
) -> None:
    model = build(vae_baselines.VAMP, number_components=7).eval()
    pseudo, encoded = model.encoder(model.pseudo_images()), model.encoder(digits)
    output = model({"data": digits})
    q = Independent(Normal(encoded.embedding, torch.exp(0.5 * encoded.log_covariance)), 1)
    p = mixture(pseudo.embedding, pseudo.log_covariance)
    expected = (q.log_prob(output.z) - p.log_prob(output.z)).mean()
    torch.testing.assert_close(output.reg_loss, expected, rtol=1e-4, atol=1e-4)


def test_prior_samples_have_the_moments_of_the_mixture(build) -> None:
    model = build(vae_baselines.VAMP, number_components=7).eval()
    pseudo = model.encoder(model.pseudo_images())
    prior = mixture(pseudo.embedding.detach(), pseudo.log_covariance.detach())
    samples = model.sample_latent(20_000)
    error = prior.variance.sqrt() / math.sqrt(20_000)
    assert ((samples.mean(dim=0) - prior.mean).abs() < 4 * error).all()


def test_pseudo_inputs_are_images(build) -> None:
    images = build(vae_baselines.VAMP).pseudo_images()
    assert images.shape == (50, 1, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1


def test_schedule_of_the_kl(build) -> None:
    model = build(vae_baselines.VAMP, linear_scheduling_steps=4)
    assert [model.kl_weight(epoch) for epoch in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert model.kl_weight(None) == model.eval().kl_weight(1) == 1.0
    assert build(vae_baselines.VAMP).kl_weight(1) == pytest.approx(1.0)


def test_component_probabilities(build, digits) -> None:
    """Bayes' rule with the density of the prior: p(k|z) = N(z; k) / (K p(z))."""
    model = build(vae_baselines.VAMP, number_components=3).eval()
    with torch.no_grad():
        prior = model.encoder(model.pseudo_images())
        code = model.latent_code(digits)
        whole = mixture(prior.embedding.double(), prior.log_covariance.double())
        parts = whole.component_distribution.log_prob(code.double().unsqueeze(1))
        expected = (parts - math.log(3) - whole.log_prob(code.double())[:, None]).exp()
        probabilities = model.component_probabilities(digits)
    torch.testing.assert_close(probabilities.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_schedule_weighs_the_kl_in_the_loss(build, digits) -> None:
    model = build(vae_baselines.VAMP, linear_scheduling_steps=4)
    output = model({"data": digits}, epoch=1)
    torch.testing.assert_close(output.loss, output.recon_loss + 0.25 * output.reg_loss)
