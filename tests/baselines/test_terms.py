from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

import vae_baselines
from vae_baselines.terms import (
    gaussian_kl,
    gaussian_log_density,
    reconstruction_term,
    sample_gaussian,
    squared_mmd,
    standard_normal_kl,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normal(mean, log_var):
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def test_reconstruction_is_summed_over_pixels() -> None:
    recon, data = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    torch.testing.assert_close(
        reconstruction_term(recon, data, "bce"),
        F.binary_cross_entropy(recon, data, reduction="none").sum(dim=(1, 2, 3)),
    )
    torch.testing.assert_close(
        reconstruction_term(recon, data, "mse"), 0.5 * (recon - data).pow(2).sum(dim=(1, 2, 3))
    )


def test_gaussian_terms_equal_torch_distributions() -> None:
    mean, log_var, other_mean, other_log_var = torch.randn(4, 5, 3, dtype=torch.float64)
    p, q = normal(mean, log_var), normal(other_mean, other_log_var)
    value = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_log_density(value, mean, log_var), p.log_prob(value))
    torch.testing.assert_close(
        gaussian_kl(mean, log_var, other_mean, other_log_var), kl_divergence(p, q)
    )
    zero = torch.zeros_like(mean)
    torch.testing.assert_close(
        standard_normal_kl(mean, log_var), kl_divergence(p, normal(zero, zero))
    )


def test_samples_have_the_given_mean_and_variance() -> None:
    mean, log_var = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    samples = sample_gaussian(mean.expand(100_000, 2), log_var.expand(100_000, 2))
    std = torch.exp(0.5 * log_var)
    assert ((samples.mean(dim=0) - mean).abs() < 4 * std / math.sqrt(100_000)).all()
    assert ((samples.std(dim=0) / std - 1).abs() < 4 / math.sqrt(200_000)).all()


def test_squared_mmd_by_hand() -> None:
    codes, prior, cross = torch.rand(3, 4, 4)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = (
        sum(codes[i, j] for i, j in pairs) / 12
        + sum(prior[i, j] for i, j in pairs) / 12
        - 2 * cross.sum() / 16
    )
    torch.testing.assert_close(squared_mmd(codes, prior, cross), expected)


def test_squared_mmd_of_one_image_has_no_terms_within_a_sample() -> None:
    one = torch.ones(1, 1)
    assert squared_mmd(one, one, 0.25 * one) == -0.5


def test_imq_kernel_sums_seven_scales(build) -> None:
    model = build(vae_baselines.WAE_IMQ)
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    base = 2 * 4 * 2.0**2  # 2·L·σ²
    for i in range(3):
        for j in range(5):
            squared = float((a[i] - b[j]).square().sum())
            expected = sum(
                s * base / (s * base + squared) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
            )
            assert float(model.imq_kernel(a, b)[i, j]) == pytest.approx(expected, rel=1e-5)
    assert model.imq_kernel(a, a).diagonal().tolist() == pytest.approx([7.0] * 3)


def test_rbf_kernel_has_one_scale(build) -> None:
    model = build(vae_baselines.WAE_RBF)
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    expected = torch.exp(-(a[:, None] - b).square().sum(dim=2) / (2 * 4 * 2.0**2))
    torch.testing.assert_close(model.rbf_kernel(a, b), expected)
    assert model.rbf_kernel(a, a).diagonal().tolist() == [1.0] * 3


@pytest.mark.parametrize("plugin", [vae_baselines.WAE_IMQ, vae_baselines.WAE_RBF])
def test_mmd_is_near_zero_for_the_prior_and_positive_elsewhere(build, plugin) -> None:
    model = build(plugin)
    prior, same, shifted = torch.randn(500, 4), torch.randn(500, 4), torch.randn(500, 4) + 2
    images = torch.rand(500, 1, 2, 2)
    _, _, near = model.loss_function(images, images, same, prior)
    _, _, far = model.loss_function(images, images, shifted, prior)
    assert abs(near) < 0.05 * far


@pytest.mark.parametrize(
    "plugin", [vae_baselines.WAE_IMQ, vae_baselines.WAE_RBF, vae_baselines.INFO_VAE]
)
def test_kernel_estimate_equals_pythae(build, digits, plugin) -> None:
    model = build(plugin)
    reference = next(c for c in type(model).__mro__ if c.__module__.startswith("pythae"))
    model.model_config.reconstruction_loss = "mse"
    z, prior, mean, log_var = torch.randn(4, 64, 4)
    posterior = (mean, log_var) if plugin is vae_baselines.INFO_VAE else ()
    recon = torch.rand_like(digits)
    ours = model.loss_function(recon, digits, z, prior, *posterior)
    theirs = reference.loss_function(model, recon, digits, z, prior, *posterior)
    torch.testing.assert_close(ours[-1], theirs[-1])


@pytest.mark.parametrize("plugin", [vae_baselines.WAE_IMQ, vae_baselines.WAE_RBF])
def test_the_mmd_has_its_weight_in_the_loss(build, digits, plugin) -> None:
    model = build(plugin, reg_weight=3.0)
    codes, prior = torch.randn(2, 64, 4) + 1
    loss, recon, mmd = model.loss_function(digits, digits, codes, prior)
    torch.testing.assert_close(loss, recon + 3 * mmd)
