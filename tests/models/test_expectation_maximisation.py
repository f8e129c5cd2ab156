"""Expectation-maximisation compared with scikit-learn's from the same initial assignment."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import MultivariateNormal

from hgmvae import expectation_maximisation
from hgmvae.expectation_maximisation import Gaussians, fit_gaussians

FLOOR = 1e-3
N_COMPONENTS = 5
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def codes() -> Tensor:
    """Codes of overlapping Gaussians in R³, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 3, generator=generator).double() * 2
    shape = torch.randn(3, 3, generator=generator).double()
    noise = torch.randn(2000, 3, generator=generator).double() @ shape
    return 100 + centres.repeat(250, 1) + noise


@pytest.fixture(params=[0, 700])
def labels(request, codes: Tensor) -> Tensor:
    """Initial assignment of the codes to the nearest of some codes."""
    return torch.cdist(codes, codes[request.param : request.param + N_COMPONENTS]).argmin(1)


def reference(codes: Tensor, labels: Tensor, n_steps: int) -> GaussianMixture:
    """scikit-learn's mixture after ``n_steps`` from an assignment, by its private methods."""
    mixture = GaussianMixture(N_COMPONENTS, reg_covar=FLOOR)
    points = codes.numpy()
    mixture._initialize(points, np.eye(N_COMPONENTS)[labels])
    for _ in range(n_steps):
        _, log_responsibilities = mixture._e_step(points)
        mixture._m_step(points, log_responsibilities)
    return mixture


@pytest.mark.parametrize("n_steps", [0, 1, 10])
def test_every_step_equals_scikit_learn(codes, labels, n_steps, monkeypatch):
    monkeypatch.setattr(expectation_maximisation, "CHUNK_ELEMENTS", 6 * 300)  # 7 chunks
    monkeypatch.setattr(expectation_maximisation, "MIN_GAIN", -math.inf)  # no early stop
    found, statistics = fit_gaussians(
        codes, labels, N_COMPONENTS, floor=FLOOR, max_iterations=n_steps
    )
    expected = reference(codes, labels, n_steps)
    assert found.weights.numpy() == pytest.approx(expected.weights_, abs=1e-8)
    assert found.means.numpy() == pytest.approx(expected.means_, rel=1e-8)
    assert found.covariances.numpy() == pytest.approx(expected.covariances_, abs=1e-6)
    log_likelihood = expected.score(codes.numpy())
    assert statistics.log_likelihood.item() == pytest.approx(log_likelihood, abs=1e-6)
    claims = expected.predict_proba(codes.numpy())
    overlap = claims.T @ claims / len(codes)
    assert statistics.overlap.numpy() == pytest.approx(overlap, abs=1e-6)


def test_iteration_stops_when_the_likelihood_converges(codes, labels):
    _, settled = fit_gaussians(codes, labels, N_COMPONENTS, floor=FLOOR, max_iterations=1000)
    mixture, one_more = fit_gaussians(codes, labels, N_COMPONENTS, floor=FLOOR, max_iterations=1)
    _, first = fit_gaussians(codes, labels, N_COMPONENTS, floor=FLOOR, max_iterations=0)
    assert first.log_likelihood < one_more.log_likelihood < settled.log_likelihood
    steps = [reference(codes, labels, n).score(codes.numpy()) for n in range(0, 200, 20)]
    assert steps == sorted(steps)
    assert steps[0] < settled.log_likelihood.item() <= steps[-1] + 1e-3
    density = log_density(mixture, codes).mean()
    torch.testing.assert_close(density, one_more.log_likelihood)


def log_density(mixture: Gaussians, codes: Tensor) -> Tensor:
    """Log-densities (N,) of codes (N, L)."""
    gaussians = MultivariateNormal(mixture.means, mixture.covariances)
    return (gaussians.log_prob(codes.unsqueeze(1)) + mixture.weights.log()).logsumexp(-1)


def test_an_empty_component_stays_finite(codes, labels):
    mixture, statistics = fit_gaussians(codes, labels.clamp_max(2), N_COMPONENTS, floor=FLOOR)
    assert statistics.log_likelihood.isfinite()
    assert all(part.isfinite().all() for part in mixture)
    assert mixture.weights.sum().item() == pytest.approx(1)


@pytest.mark.gpu
@on_gpu
def test_gpu_and_cpu_agree(codes, labels):
    own, _ = fit_gaussians(codes, labels, N_COMPONENTS, floor=FLOOR)
    other, _ = fit_gaussians(codes.cuda(), labels.cuda(), N_COMPONENTS, floor=FLOOR)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two.cpu(), rtol=1e-6, atol=1e-8)
