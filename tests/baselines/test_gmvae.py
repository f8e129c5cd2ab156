from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import vae_baselines
from vae_baselines.gmvae import mixture_terms

B, K, L = 3, 5, 2
N_SAMPLES = 100_000


def normal(mean, log_var):
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


@pytest.fixture
def gaussians():
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, B, L, dtype=torch.float64)
    prior_mean, prior_log_var = torch.randn(2, B, K, L, dtype=torch.float64)
    return mean, log_var, prior_mean, prior_log_var


def posterior_of_z(latent, prior_mean, prior_log_var):
    """By Bayes' rule, in probabilities: p(z=k) p(x|w, z=k) / Σ."""
    joint = normal(prior_mean, prior_log_var).log_prob(latent.unsqueeze(-2)).exp() / K
    return joint / joint.sum(dim=-1, keepdim=True)


def test_terms_equal_torch_distributions(gaussians) -> None:
    mean, log_var, prior_mean, prior_log_var = gaussians
    latent = normal(mean, log_var).sample()
    conditional, z = mixture_terms(latent, *gaussians)
    posterior = posterior_of_z(latent, prior_mean, prior_log_var)
    q = normal(mean, log_var)
    by_component = torch.stack(
        [kl_divergence(q, normal(prior_mean[:, k], prior_log_var[:, k])) for k in range(K)], dim=1
    )
    torch.testing.assert_close(conditional, (posterior * by_component).sum(dim=1))
    uniform = Categorical(torch.ones(B, K, dtype=torch.float64))
    torch.testing.assert_close(z, kl_divergence(Categorical(posterior), uniform))


def test_conditional_prior_equals_monte_carlo(gaussians) -> None:
    mean, log_var, prior_mean, prior_log_var = gaussians
    latent = normal(mean, log_var).sample()
    conditional, _ = mixture_terms(latent, *gaussians)
    posterior = posterior_of_z(latent, prior_mean, prior_log_var)
    q = normal(mean, log_var)
    x = q.sample((N_SAMPLES,))
    z = Categorical(posterior).sample((N_SAMPLES,))
    rows = torch.arange(B)
    p = normal(prior_mean[rows, z], prior_log_var[rows, z])
    draws = q.log_prob(x) - p.log_prob(x)
    error = draws.std(dim=0) / math.sqrt(N_SAMPLES)
    assert ((draws.mean(dim=0) - conditional).abs() < 4 * error).all()


def test_one_component_is_a_vae_with_that_prior(gaussians) -> None:
    mean, log_var, prior_mean, prior_log_var = gaussians
    conditional, z = mixture_terms(mean, mean, log_var, prior_mean[:, :1], prior_log_var[:, :1])
    prior = normal(prior_mean[:, 0], prior_log_var[:, 0])
    torch.testing.assert_close(conditional, kl_divergence(normal(mean, log_var), prior))
    torch.testing.assert_close(z, torch.zeros_like(z))


def test_loss_is_the_sum_of_its_terms(build, digits) -> None:
    model = build(vae_baselines.GMVAE)
    encoded = model.encoder(digits)
    output = model({"data": digits})
    terms = output.recon_loss + output.conditional_loss + output.w_loss + output.z_loss
    torch.testing.assert_close(output.loss, terms)
    w = normal(encoded.noise_embedding, encoded.noise_log_covariance)
    zero = torch.zeros_like(encoded.noise_embedding)
    torch.testing.assert_close(output.w_loss, kl_divergence(w, normal(zero, zero)).mean())


def test_z_term_does_not_fall_below_the_information_floor(build, digits) -> None:
    torch.manual_seed(0)
    free = build(vae_baselines.GMVAE)({"data": digits}).z_loss
    assert 0 <= free < 1.5
    assert build(vae_baselines.GMVAE, information_floor=1.5)({"data": digits}).z_loss >= 1.5


def test_prior_samples_are_of_the_mixture(build) -> None:
    model = build(vae_baselines.GMVAE, n_components=2)
    with torch.no_grad():
        final = model.component_network[2]
        final.weight.zero_()
        mean = torch.tensor([[-5.0] * 4, [5.0] * 4])
        log_var = torch.tensor([[0.0] * 4, [math.log(0.25)] * 4])
        final.bias.copy_(torch.cat([mean, log_var], dim=1).flatten())
    samples = model.sample_latent(20_000)
    upper = samples[:, 0] > 0
    assert abs(upper.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(20_000)
    for chosen, centre, std in ((~upper, -5.0, 1.0), (upper, 5.0, 0.5)):
        n = int(chosen.sum())
        assert ((samples[chosen].mean(dim=0) - centre).abs() < 4 * std / math.sqrt(n)).all()
        assert ((samples[chosen].std(dim=0) / std - 1).abs() < 4 / math.sqrt(2 * n)).all()


def test_prior_depends_on_the_noise(build) -> None:
    """Without noise, the samples of a cluster would be Gaussian around one mean."""
    model = build(vae_baselines.GMVAE, n_components=1, noise_dim=1)
    with torch.no_grad():
        first, final = model.component_network[0], model.component_network[2]
        first.weight.fill_(100.0)  # tanh then gives the sign of the noise
        first.bias.zero_()
        final.weight.zero_()
        final.weight[:4] = 3.0 / model.model_config.hidden_dim
        final.bias.zero_()
        final.bias[4:] = math.log(0.01)
    samples = model.sample_latent(1000)
    assert samples.abs().mean() == pytest.approx(3.0, abs=0.1)
    assert abs(samples.mean()) < 0.5


def test_component_probabilities(build, digits) -> None:
    """Known answer: with components that do not depend on w, Bayes' rule for unit Gaussians."""
    model = build(vae_baselines.GMVAE, n_components=2).eval()
    last = model.component_network[2]
    with torch.no_grad():
        code = model.latent_code(digits[:1])
        last.weight.zero_()
        means = torch.cat([code, code + 1])
        last.bias.copy_(torch.cat([means, torch.zeros_like(means)], dim=1).flatten())
        probabilities = model.component_probabilities(digits[:1])
    odds = math.exp(0.5 * model.latent_dim)
    assert probabilities[0, 0].item() == pytest.approx(odds / (1 + odds), rel=1e-4)
