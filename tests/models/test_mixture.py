"""The mixture compared with torch.distributions, Monte Carlo estimates and known data."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence

from hgmvae.mixture import Components, GlobalMixture, fit_clusters, latent_moments

NO_NOISE = torch.full((2,), 1e-6)


@pytest.fixture
def mixture() -> GlobalMixture:
    """Three clusters of two full-covariance components in R², in double precision."""
    mixture = GlobalMixture(n_clusters=3, subcomponents=2, latent_dim=2).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return mixture


def reference(mixture: GlobalMixture) -> MultivariateNormal:
    factor = mixture.components().factor
    return MultivariateNormal(mixture.mean, precision_matrix=factor @ factor.mT)


def test_latent_moments_are_those_of_eq_1():
    n_draws = 100_000
    weights, mean, log_var = torch.randn(1, 3), torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    z = mean + torch.randn(n_draws, 3, 2) * (log_var / 2).exp()
    x = (weights.unsqueeze(-1) * z).sum(1)
    expected_mean, expected_var = latent_moments(weights, mean, log_var)
    deviation = x - x.mean(0)
    mean_error = x.std(0) / n_draws**0.5
    var_error = deviation.square().std(0) / n_draws**0.5
    assert ((x.mean(0) - expected_mean).abs() < 4 * mean_error).all()
    assert ((deviation.square().mean(0) - expected_var).abs() < 4 * var_error).all()


def test_densities_and_responsibilities(mixture):
    x = torch.randn(7, 2).double()
    components = mixture.components()
    log_density = reference(mixture).log_prob(x.unsqueeze(1))
    torch.testing.assert_close(components.log_density(x), log_density)
    joint = log_density.exp() * mixture.logits.softmax(0)
    torch.testing.assert_close(components.responsibilities(x), joint / joint.sum(1, keepdim=True))


def test_divergence_is_the_kl_of_all_pairs(mixture):
    mean, variance = torch.randn(4, 3, 2).double(), torch.rand(4, 3, 2).double() + 0.1
    own = MultivariateNormal(mean.unsqueeze(-2), torch.diag_embed(variance).unsqueeze(-3))
    torch.testing.assert_close(
        mixture.components().divergence(mean, variance), kl_divergence(own, reference(mixture))
    )


def test_samples_come_from_the_mixture(mixture):
    # The share of samples in the unit circle around every component is that of the reference.
    n_draws = 50_000
    own = MixtureSameFamily(Categorical(logits=mixture.logits), reference(mixture))
    drawn, expected = mixture.components().sample(n_draws), own.sample((n_draws,))
    for centre in mixture.mean:
        inside = [((x - centre).norm(dim=1) < 1).double().mean() for x in (drawn, expected)]
        error = (sum(share * (1 - share) for share in inside) / n_draws) ** 0.5
        assert abs(inside[0] - inside[1]) < 4 * error


def test_clusters_and_components_share_their_weight(mixture):
    clusters = torch.tensor([[0.5, 0.3, 0.2]]).double()
    components = mixture.components()
    spread = components.by_component(clusters)
    torch.testing.assert_close(components.by_cluster(spread), clusters)
    weights = mixture.logits.softmax(0)
    torch.testing.assert_close(spread[0, 0] / spread[0, 3], weights[0] / weights[3])


def rings(n_points: int) -> tuple[Tensor, Tensor]:
    """Two concentric rings, which two Gaussians cannot separate, and their labels."""
    label = torch.arange(n_points) % 2
    angle = 2 * torch.pi * torch.rand(n_points)
    radius = 1.0 + 2.0 * label + 0.1 * torch.randn(n_points)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def agreement(mixture: GlobalMixture, codes: Tensor, label: Tensor) -> float:
    components = mixture.components()
    cluster = components.by_cluster(components.responsibilities(codes)).argmax(1)
    matches = (cluster == label).float().mean().item()
    return max(matches, 1 - matches)


def test_fit_finds_clusters_that_are_not_gaussian():
    codes, label = rings(2000)
    many = GlobalMixture(n_clusters=2, subcomponents=12, latent_dim=2)
    many.fit(codes, NO_NOISE, seed=0)
    assert agreement(many, codes, label) > 0.99
    one = GlobalMixture(n_clusters=2, subcomponents=1, latent_dim=2)
    one.fit(codes, NO_NOISE, seed=0)
    assert agreement(one, codes, label) < 0.9


def test_fit_recovers_a_gaussian_mixture():
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    root = torch.tensor([[1.0, 0.0], [0.8, 0.4]])
    label = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 20_000, replacement=True)
    mixture = GlobalMixture(n_clusters=3, subcomponents=1, latent_dim=2)
    noise = torch.tensor([0.5, 0.1])
    mixture.fit(means[label] + torch.randn(20_000, 2) @ root.T, noise, seed=0)
    order = torch.cdist(means, mixture.mean).argmin(1)
    torch.testing.assert_close(mixture.mean[order], means, atol=0.06, rtol=0)
    covariance = reference(mixture).covariance_matrix[order]
    expected = root @ root.T + noise.diag()
    torch.testing.assert_close(covariance, expected.expand(3, 2, 2), atol=0.06, rtol=0)
    weights = mixture.logits.softmax(0)[order]
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)


def test_components_of_a_fit_are_those_of_the_global_mixture_without_noise():
    codes, _ = rings(300)
    mixture = GlobalMixture(n_clusters=2, subcomponents=4, latent_dim=2).double()
    mixture.fit(codes, torch.zeros(2), seed=3, n_fits=2)
    fitted = Components.of(*fit_clusters(codes, 8, 2, seed=3, n_fits=2), n_clusters=2)
    expected = mixture.components()
    for name in Components._fields:
        torch.testing.assert_close(getattr(fitted, name), getattr(expected, name), msg=name)


def test_fit_depends_only_on_its_seed():
    codes, _ = rings(300)
    fitted = []
    for seed in (1, 1, 2):
        mixture = GlobalMixture(n_clusters=2, subcomponents=4, latent_dim=2)
        mixture.fit(codes, NO_NOISE, seed=seed)
        fitted.append(mixture.mean.detach())
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_the_fit_with_the_most_even_clusters_is_chosen():
    # Ten even clusters that touch, in a circle: some fits put two of them into one.
    angle = torch.arange(10) * 2 * math.pi / 10
    centres = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    generator = torch.Generator().manual_seed(0)
    codes = centres.repeat(100, 1) + 0.3 * torch.randn(1000, 2, generator=generator)

    def entropy(seed, n_fits):
        mixture = GlobalMixture(n_clusters=10, subcomponents=4, latent_dim=2)
        mixture.fit(codes, NO_NOISE, seed, n_fits)
        components = mixture.components()
        share = components.by_cluster(components.log_weights.exp())
        return -(share * share.log()).sum().item()

    single = [entropy(seed, n_fits=1) for seed in range(5)]
    assert max(single) - min(single) > 0.05
    assert entropy(0, n_fits=5) == max(single)
    assert max(single) == pytest.approx(math.log(10), abs=0.01)


@pytest.mark.parametrize("n_codes", [1, 5])
def test_fit_to_fewer_codes_than_components(n_codes):
    mixture = GlobalMixture(n_clusters=3, subcomponents=4, latent_dim=2)
    codes = torch.randn(n_codes, 2)
    mixture.fit(codes, NO_NOISE, seed=0)
    assert mixture.components().log_density(codes).isfinite().all()
    assert torch.cdist(codes, mixture.mean).min(1).values.max() < 0.1


def test_fit_does_not_depend_on_the_scale_of_the_codes():
    codes = rings(300)[0].double()
    small, clusters = fit_clusters(codes, 8, 2, seed=0)
    large, same = fit_clusters(128 * codes, 8, 2, seed=0)
    assert torch.equal(clusters, same)
    torch.testing.assert_close(large.means, 128 * small.means)
    torch.testing.assert_close(large.covariances, 128**2 * small.covariances)
