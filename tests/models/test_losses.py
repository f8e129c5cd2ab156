"""Each term of Eq. 14 against a closed form, torch.distributions or a Monte Carlo estimate."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

from hgmvae import losses
from hgmvae.aggregate import AggregateLogDensity, gaussian_aggregate, weighted_aggregate
from hgmvae.mixture import Components, GlobalMixture


def posteriors(n_images: int, n_components: int = 3, latent_dim: int = 2) -> tuple[Tensor, Tensor]:
    """Random means and log-variances (B, K, L) in double precision."""
    shape = (n_images, n_components, latent_dim)
    return torch.randn(shape, dtype=torch.double), 0.5 * torch.randn(shape, dtype=torch.double)


def assert_within_standard_errors(draws: Tensor, value: Tensor, n_errors: float = 4) -> None:
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - value) < n_errors * error


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_reconstruction_is_a_log_likelihood_per_image(kind):
    data, reconstruction = torch.rand(4, 1, 5, 5), torch.rand(4, 1, 5, 5)
    if kind == "bce":
        data = data.round()
        density = torch.distributions.Bernoulli(reconstruction).log_prob(data)
    else:
        density = Normal(reconstruction, 1).log_prob(data) + 0.5 * math.log(2 * math.pi)
    expected = -density.sum((1, 2, 3)).mean()
    torch.testing.assert_close(losses.reconstruction_term(reconstruction, data, kind), expected)


def test_gaussian_w_prior_is_the_kl():
    mean, log_var = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0, 1)).sum(1).mean()
    torch.testing.assert_close(losses.gaussian_w_prior(mean, log_var), expected)


def test_uniform_w_prior_is_the_kl_to_the_uniform_categorical():
    weights = torch.randn(6, 4).softmax(1)
    uniform = Categorical(torch.ones(6, 4) / 4)
    expected = kl_divergence(Categorical(weights), uniform).mean()
    torch.testing.assert_close(losses.uniform_w_prior(weights), expected)


@pytest.mark.parametrize(
    ("weights", "value"), [(torch.eye(5), math.log(5)), (torch.full((3, 5), 0.2), 0.0)]
)
def test_uniform_w_prior_spans_its_range(weights, value):
    assert losses.uniform_w_prior(weights).item() == pytest.approx(value, abs=1e-6)


def test_entropy_has_finite_gradients_at_certainty():
    logits = (1000 * torch.eye(3)).requires_grad_()
    certain = logits.softmax(1)
    losses.uniform_w_prior(certain).backward(retain_graph=True)
    losses.responsibility_prior(certain, torch.zeros(3), torch.ones(3, 3)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_nan_reconstruction_makes_the_loss_nan(kind):
    image = torch.full((1, 1, 2, 2), torch.nan)
    assert losses.reconstruction_term(image, torch.zeros_like(image), kind).isnan()


def aggregate(estimator: str, mean: Tensor, log_var: Tensor) -> AggregateLogDensity:
    if estimator == "gaussian":
        return gaussian_aggregate(mean, log_var)
    sample = mean + torch.randn_like(mean) * (log_var / 2).exp()
    return weighted_aggregate(sample, mean, log_var, dataset_size=1000)


@pytest.mark.parametrize("estimator", ["gaussian", "weighted"])
@pytest.mark.parametrize("n_images", [1, 2, 64])
def test_decomposition_adds_up_to_the_plain_kl(estimator, n_images):
    mean, log_var = posteriors(n_images)
    parts = losses.decompose_z_prior(mean, log_var, aggregate(estimator, mean, log_var))
    plain = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0, 1)).sum((1, 2)).mean()
    torch.testing.assert_close(losses.plain_z_prior(mean, log_var), plain)
    torch.testing.assert_close(torch.stack(parts).sum(), plain)


@pytest.mark.parametrize("noise_variance", [0.01, 0.5])
@pytest.mark.parametrize(
    ("shape", "tolerance"), [((8192, 3, 4), 0.01), ((1024, 10, 8), 0.15), ((128, 4, 4), 0.6)]
)
def test_independent_codes_have_no_total_correlation(shape, tolerance, noise_variance):
    # The average over batches leaves the bias.
    n_batches = 1 if shape[0] > 2000 else 40
    means = torch.randn(n_batches, *shape, dtype=torch.double)
    log_var = torch.full(shape, math.log(noise_variance), dtype=torch.double)
    parts = [
        losses.decompose_z_prior(mean, log_var, gaussian_aggregate(mean, log_var)) for mean in means
    ]
    for name in ("component_correlation", "dimension_correlation"):
        value = torch.stack([getattr(part, name) for part in parts]).mean()
        assert abs(value) < tolerance, name


@pytest.mark.parametrize("noise_variance", [0.05, 0.5])
def test_terms_of_correlated_gaussian_codes_have_their_analytic_values(noise_variance):
    n_components, latent_dim = 3, 2
    n_factors = n_components * latent_dim
    root = torch.eye(n_factors, dtype=torch.double) + 0.4 * torch.randn(
        n_factors, n_factors, dtype=torch.double
    )
    signal = root @ root.T
    total = signal + noise_variance * torch.eye(n_factors, dtype=torch.double)
    blocks = [
        total[i : i + latent_dim, i : i + latent_dim] for i in range(0, n_factors, latent_dim)
    ]
    by_component = sum(block.logdet() for block in blocks)
    by_dimension = total.diagonal().log().sum()
    expected = {
        "mutual_information": 0.5 * (total.logdet() - n_factors * math.log(noise_variance)),
        "component_correlation": 0.5 * (by_component - total.logdet()),
        "dimension_correlation": 0.5 * (by_dimension - by_component),
        "dimension_kl": 0.5 * (total.diagonal() - 1 - total.diagonal().log()).sum(),
    }

    n_images = 200_000
    mean = (torch.randn(n_images, n_factors, dtype=torch.double) @ root.T).view(
        n_images, n_components, latent_dim
    )
    log_var = torch.full_like(mean, math.log(noise_variance))
    parts = losses.decompose_z_prior(mean, log_var, gaussian_aggregate(mean, log_var))

    assert expected["component_correlation"] > 0.3
    for name, value in expected.items():
        assert getattr(parts, name).item() == pytest.approx(value.item(), abs=0.03), name


def test_gaussian_aggregate_is_that_of_the_moments_beyond_the_batch_size():
    # With more factors than images, the Gram matrix between images is the smaller one.
    mean, log_var = posteriors(8, n_components=4, latent_dim=16)
    noise = log_var.exp().mean(0).flatten()
    centred = (mean - mean.mean(0)).flatten(1)
    covariance = centred.T @ centred / 7 + noise.diag()
    ratio = torch.linalg.eigvalsh(covariance / noise.sqrt() / noise.sqrt()[:, None]) - 1
    share = ratio / (1 + ratio)
    bias = (share.sum() ** 2 + share.square().sum()) / 16
    expected = MultivariateNormal(torch.zeros(64).double(), covariance).entropy() + bias / 2
    torch.testing.assert_close(-gaussian_aggregate(mean, log_var).joint, expected)


def naive_weighted_aggregate(
    sample: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int
) -> AggregateLogDensity:
    pairs = Normal(mean, (log_var / 2).exp()).log_prob(sample.unsqueeze(1))  # (B, B, K, L)
    offset = math.log(len(mean) * dataset_size)
    return AggregateLogDensity(
        joint=(pairs.sum((2, 3)).logsumexp(1) - offset).mean(),
        components=(pairs.sum(3).logsumexp(1) - offset).sum(1).mean(),
        dimensions=(pairs.logsumexp(1) - offset).sum((1, 2)).mean(),
    )


@pytest.mark.parametrize("latent_dim", [2, 15])
def test_weighted_aggregate_and_its_gradients_are_the_naive_formulas(latent_dim):
    mean, log_var = posteriors(7, latent_dim=latent_dim)
    inputs = [t.requires_grad_() for t in (torch.randn_like(mean), mean, log_var)]
    outcomes = []
    for estimate in (weighted_aggregate, naive_weighted_aggregate):
        value = torch.stack(estimate(*inputs, dataset_size=500))
        weighted = (value * torch.tensor([1.0, -2.0, 3.0])).sum()
        outcomes.append((value, *torch.autograd.grad(weighted, inputs)))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_weighted_aggregate_is_accurate_for_narrow_posteriors():
    mean, log_var = posteriors(32, latent_dim=8)
    log_var = log_var - 9
    sample = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
    exact = torch.stack(naive_weighted_aggregate(sample, mean, log_var, 500))
    single = [t.float() for t in (sample, mean, log_var)]
    torch.testing.assert_close(
        torch.stack(weighted_aggregate(*single, 500)).double(), exact, rtol=1e-4, atol=1e-2
    )


def random_mixture() -> Components:
    """Three clusters of two full-covariance components in R², in double precision."""
    mixture = GlobalMixture(n_clusters=3, subcomponents=2, latent_dim=2).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return mixture.components()


def distributions(mixture: Components) -> MultivariateNormal:
    factor = mixture.factor
    return MultivariateNormal(mixture.mean, precision_matrix=factor @ factor.mT)


def test_eq_4_is_the_doubly_weighted_sum():
    mixture, (mean, log_var) = random_mixture(), posteriors(4)
    weights, other = torch.rand(4, 3).softmax(1).double(), torch.rand(4, 6).softmax(1).double()
    expected = torch.zeros((), dtype=torch.double)
    for b in range(4):
        for i in range(3):
            own = MultivariateNormal(mean[b, i], torch.diag(log_var[b, i].exp()))
            divergences = kl_divergence(own, distributions(mixture))
            expected += weights[b, i] * (other[b] * divergences).sum() / 4
    divergence = mixture.divergence(mean, log_var.exp())
    torch.testing.assert_close(losses.mixture_cross_kl(weights, other, divergence), expected)


def test_responsibility_prior_bounds_the_divergence_to_the_mixture():
    mixture = random_mixture()
    mean, variance = torch.randn(1, 2).double(), torch.tensor([[0.3, 0.1]]).double()
    posterior = MultivariateNormal(mean, torch.diag(variance[0]))
    x = posterior.sample((100_000,))[:, 0]
    joint = mixture.log_density(x) + mixture.log_weights
    draws = posterior.log_prob(x) - joint.logsumexp(1)  # KL(q ‖ mixture)

    # The γ that minimises the bound makes it log Σ_m π_m exp(−KL_m).
    divergence = mixture.divergence(mean, variance)
    best = (mixture.log_weights - divergence).softmax(1)
    bound = losses.responsibility_prior(best, mixture.log_weights, divergence)
    torch.testing.assert_close(bound, -(mixture.log_weights - divergence).logsumexp(1)[0])
    assert draws.mean() - 4 * draws.std() / math.sqrt(len(draws)) < bound

    other = losses.responsibility_prior(best.roll(1, 1), mixture.log_weights, divergence)
    assert other > bound


def test_responsibility_prior_is_a_monte_carlo_mean():
    mixture = random_mixture()
    mean, variance = torch.randn(1, 2).double(), torch.tensor([[0.3, 0.1]]).double()
    responsibilities = mixture.responsibilities(mean)
    value = losses.responsibility_prior(
        responsibilities, mixture.log_weights, mixture.divergence(mean, variance)
    )
    posterior, n_draws = MultivariateNormal(mean[0], torch.diag(variance[0])), 100_000
    index = torch.multinomial(responsibilities[0], n_draws, replacement=True)
    x = posterior.sample((n_draws,))
    joint = mixture.log_density(x) + mixture.log_weights
    log_q = posterior.log_prob(x) + responsibilities[0, index].log()
    assert_within_standard_errors(log_q - joint.gather(1, index[:, None])[:, 0], value.detach())


def test_fisher_is_eq_12_with_full_matrices():
    mean, log_var = posteriors(5, n_components=4, latent_dim=3)
    weights = torch.randn(5, 4, dtype=torch.double)
    n_samples = 17  # the same n_k for all components cancels
    for b in range(5):
        within, between = torch.zeros(2, 3, 3, dtype=torch.double)
        for k in range(4):
            scale = n_samples * weights[b, k] ** 2
            within += scale * torch.diag(log_var[b, k].exp())
            between += scale * torch.outer(mean[b, k], mean[b, k])
        expected = torch.trace(torch.linalg.inv(within) @ between)
        fisher = losses.sample_fisher(weights[b : b + 1], mean[b : b + 1], log_var[b : b + 1])
        torch.testing.assert_close(fisher[0], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def labelled() -> tuple[Tensor, Tensor, Tensor]:
    """Membership in three classes (a fourth is empty), means and variances of 40 latents in R³."""
    label = torch.arange(40) % 3
    mean = torch.randn(40, 3).double() + 2 * torch.nn.functional.one_hot(label)
    return torch.nn.functional.one_hot(label, 4).double(), mean, torch.rand(40, 3).double()


def test_batch_scatter_is_that_of_labelled_samples(labelled):
    membership, mean, variance = labelled
    within, between = torch.zeros(2, 3, 3, dtype=torch.double)
    for k in range(3):
        members = membership[:, k] == 1
        group = mean[members]
        offset = group.mean(0) - mean.mean(0)
        between += len(group) * torch.outer(offset, offset)
        within += len(group) * torch.cov(group.T, correction=0) + variance[members].sum(0).diag()
    scatter = losses.batch_scatter(membership, mean, variance)
    torch.testing.assert_close(scatter.between, between / 40)
    torch.testing.assert_close(scatter.within, within / 40)


def test_batch_fisher_forms_follow_the_eigenvalues_of_eq_12(labelled):
    scatter = losses.batch_scatter(*labelled)
    eigenvalues = torch.linalg.eigvals(torch.linalg.inv(scatter.within) @ scatter.between).real
    torch.testing.assert_close(losses.fisher_log_det(scatter), eigenvalues.log1p().sum())
    share = (eigenvalues / (1 + eigenvalues)).sum()
    torch.testing.assert_close(losses.fisher_share(scatter), share)
    diagonal = losses.Scatter(*(matrix.diagonal().diag() for matrix in scatter))
    torch.testing.assert_close(losses.fisher_by_dimension(scatter), losses.fisher_log_det(diagonal))


def test_random_membership_separates_nothing(labelled):
    membership, mean, variance = labelled
    scatter = losses.batch_scatter(torch.full_like(membership, 0.25), mean, variance)
    for fisher in (losses.fisher_by_dimension, losses.fisher_log_det, losses.fisher_share):
        assert fisher(scatter).item() == pytest.approx(0, abs=1e-9)


def test_fisher_share_resolves_dimensions_of_very_different_scale():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 2
    membership = torch.nn.functional.one_hot(labels).float()
    mean = torch.randn(128, 2, generator=generator)
    mean[:, 1] += 4 * labels
    variance = torch.full((128, 2), 0.01)
    scale = torch.tensor([1, 1e-4])
    expected = losses.fisher_share(losses.batch_scatter(membership, mean, variance))
    assert 0.75 < expected < 0.9
    scatter = losses.batch_scatter(membership, scale * mean, scale**2 * variance)
    torch.testing.assert_close(losses.fisher_share(scatter), expected)


@pytest.mark.parametrize("fisher", [losses.fisher_log_det, losses.fisher_share])
def test_a_scatter_matrix_that_is_not_positive_definite_counts_as_divergence(fisher):
    """Rounding makes such matrices; a finite value would be maximised."""
    within = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert fisher(losses.Scatter(torch.zeros(2, 2), within)).isnan()
    within = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert fisher(losses.Scatter(torch.zeros(2, 2), within)).isnan()
