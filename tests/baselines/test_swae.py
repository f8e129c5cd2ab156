from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

import vae_baselines
from vae_baselines.swae import sliced_wasserstein


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 200, 3, dtype=torch.float64).unbind()


def directions(n: int, dimension: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, dimension, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_dimension_p1_equals_scipy(samples, sign) -> None:
    a, b = samples[0][:, :1], 2 * samples[1][:, :1] + 1
    ours = sliced_wasserstein(a, b, torch.full((1, 1), sign, dtype=torch.float64), p=1)
    assert float(ours) == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-12)


def test_one_dimension_p2_equals_the_sorted_closed_form(samples) -> None:
    a, b = samples[0][:, :1], 2 * samples[1][:, :1] + 1
    expected = (a.sort(dim=0).values - b.sort(dim=0).values).square().mean()
    ours = sliced_wasserstein(a, b, torch.ones(1, 1, dtype=torch.float64), p=2)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_invariances(samples, p) -> None:
    a, b = samples
    theta = directions(50, 3)
    distance = sliced_wasserstein(a, b, theta, p)
    torch.testing.assert_close(sliced_wasserstein(b, a, theta, p), distance)
    shuffled = a[torch.randperm(len(a))]
    torch.testing.assert_close(sliced_wasserstein(shuffled, b, theta, p), distance)
    torch.testing.assert_close(sliced_wasserstein(a + 3, b + 3, theta, p), distance)
    torch.testing.assert_close(sliced_wasserstein(2 * a, 2 * b, theta, p), 2**p * distance)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    rotated = sliced_wasserstein(a @ rotation, b @ rotation, theta @ rotation, p)
    torch.testing.assert_close(rotated, distance)
    assert sliced_wasserstein(a, shuffled, theta, p) == 0


def test_a_shift_costs_its_mean_squared_projection(samples) -> None:
    """SW_2² of a sample and itself shifted by v is the mean of ⟨v, θ⟩², |v|²/L over the sphere."""
    a, _ = samples
    shift = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    distance = sliced_wasserstein(a, a + shift, directions(20_000, 3), p=2)
    # the variance of ⟨u, θ⟩² for a unit vector u in three dimensions is 4/45
    assert abs(float(distance) - 9 / 3) < 4 * 9 * (4 / 45 / 20_000) ** 0.5


def test_the_distance_has_its_weight_in_the_loss(build, digits) -> None:
    output = build(vae_baselines.SWAE, reg_weight=3.0)({"data": digits})
    torch.testing.assert_close(output.loss, output.recon_loss + 3 * output.sw_loss)


def test_directions_have_length_one(build, digits, monkeypatch) -> None:
    used = []
    monkeypatch.setattr(
        "vae_baselines.swae.sliced_wasserstein",
        lambda code, prior, theta, p: used.append(theta) or code.sum(),
    )
    model = build(vae_baselines.SWAE, n_projections=7)
    model({"data": digits})
    assert used[0].shape == (7, model.latent_dim)
    torch.testing.assert_close(used[0].norm(dim=1), torch.ones(7))
