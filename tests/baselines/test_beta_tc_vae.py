from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import vae_baselines
from vae_baselines.beta_tc_vae import decomposed_kl, equal_weights, stratified_weights
from vae_baselines.terms import sample_gaussian


@pytest.mark.parametrize("weights", [equal_weights, stratified_weights])
def test_terms_sum_to_the_kl(weights) -> None:
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 2000, 3, dtype=torch.float64)
    latent = sample_gaussian(mean, log_var)
    draws = sum(decomposed_kl(latent, mean, log_var, weights(2000, 60_000).double().log()))
    q = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(draws, q.log_prob(latent) - p.log_prob(latent))
    difference = draws - kl_divergence(q, p)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(2000)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_total_correlation_of_gaussian_codes(correlation) -> None:
    """Means of correlation ρ and posteriors of variance s² aggregate to N(0, Σ + s²·I).

    Its total correlation is −½·log(1 − r²) with r = ρ / (1 + s²). Tolerance: 0.05 nats for 2,000
    images (the estimate's own noise is about 0.02).
    """
    torch.manual_seed(0)
    n, variance = 2000, 0.25
    noise = torch.randn(n, 2, dtype=torch.float64)
    mixing = torch.tensor([[1.0, 0.0], [correlation, math.sqrt(1 - correlation**2)]])
    mean = noise @ mixing.T.double()
    log_var = torch.full_like(mean, math.log(variance))
    latent = sample_gaussian(mean, log_var)
    _, total_correlation, _ = decomposed_kl(
        latent, mean, log_var, stratified_weights(n, n).double().log()
    )
    r = correlation / (1 + variance)
    assert float(total_correlation.mean()) == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.05)


def test_stratified_weights() -> None:
    weights = stratified_weights(5, 100).double()
    assert weights.diagonal().tolist() == pytest.approx([1 / 100] * 5)
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert sorted(weights[0].tolist()) == pytest.approx(sorted([0.01, 0.24, 0.25, 0.25, 0.25]))


def test_loss_is_the_weighted_sum_of_its_terms(build, digits) -> None:
    model = build(vae_baselines.BETA_TC_VAE, alpha=0.5, beta=3.0, gamma=2.0)
    output = model({"data": digits}, dataset_size=1000)
    expected = (
        output.recon_loss
        + 0.5 * output.mutual_information_loss
        + 3 * output.total_correlation_loss
        + 2 * output.dimension_kl_loss
    )
    torch.testing.assert_close(output.loss, expected)


def test_the_estimator_uses_the_size_of_the_dataset(build, digits) -> None:
    """Log q(z) by minibatch weighted sampling falls by log 10 with ten times as many images."""
    model, found = build(vae_baselines.BETA_TC_VAE, use_mss=False), []
    for size in (100, 1000):
        torch.manual_seed(0)
        found.append(model({"data": digits}, dataset_size=size).mutual_information_loss.item())
    assert found[1] - found[0] == pytest.approx(math.log(10), abs=1e-4)
