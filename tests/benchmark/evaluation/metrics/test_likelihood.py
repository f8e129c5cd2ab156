"""Likelihood metrics: closed forms of linear Gaussian models, parity with pythae, determinism."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal

from hgmvae_bench.evaluation import outputs as outputs_module
from hgmvae_bench.evaluation.densities import observation_log_density
from hgmvae_bench.evaluation.metrics.likelihood import (
    DISTORTION,
    ELBO,
    NLL,
    RATE,
    importance_weighted_log_density,
)
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.plugins.protocols import LogDensities, MetricMissingError
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.utils.seeding import derive_seed

CPU = torch.device("cpu")
SIDE, LATENT_DIM = 4, 3


class ProbabilisticPca(nn.Module):
    """Probabilistic PCA with unit noise: z ~ N(0, I), x | z ~ N(W z + μ, I).

    Args:
        widening: factor on the covariance of the exact posterior.
        shift: added to the mean of the exact posterior.
    """

    latent_dim = LATENT_DIM

    def __init__(self, widening: float = 1, shift: float = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.loadings = torch.randn(SIDE**2, LATENT_DIM, generator=generator, dtype=torch.float64)
        self.mean = torch.full((SIDE**2,), 0.5, dtype=torch.float64)
        precision = self.loadings.T @ self.loadings + torch.eye(LATENT_DIM)
        self.covariance = widening * torch.linalg.inv(precision)
        self.shift = shift

    def decoder(self, latent: Tensor) -> dict[str, Tensor]:
        pixels = latent @ self.loadings.T + self.mean
        return {"reconstruction": pixels.unflatten(1, (1, SIDE, SIDE))}

    def posterior(self, data: Tensor) -> MultivariateNormal:
        """q(z | x), which is exact without widening and shift."""
        exact = torch.linalg.inv(self.loadings.T @ self.loadings + torch.eye(LATENT_DIM))
        mean = (data.double().flatten(1) - self.mean) @ self.loadings @ exact
        return MultivariateNormal(mean + self.shift, self.covariance)

    def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(data)
        latents = posterior.sample((n_samples,))
        return latents, posterior.log_prob(latents)

    def prior_log_density(self, latent: Tensor) -> Tensor:
        return prior().log_prob(latent)

    def log_likelihood(self, data: Tensor) -> Tensor:
        """Exact log p(x), (B,)."""
        covariance = self.loadings @ self.loadings.T + torch.eye(SIDE**2)
        return MultivariateNormal(self.mean, covariance).log_prob(data.double().flatten(1))


def prior() -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(LATENT_DIM).double(), torch.eye(LATENT_DIM).double())


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (200, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


@pytest.fixture
def make_run(make_outputs, images):
    """Function that builds the outputs of a model on the images of a dataset with squared error."""

    def make(model: nn.Module, **settings) -> RunOutputs:
        defaults = {"images": images, "dataset": "fashion-mnist", "codec": ModelCodec(model, CPU)}
        options = {**defaults, **settings}
        codec = options.pop("codec")
        return replace(make_outputs(**options), codec=codec)

    return make


def unit(images: Tensor) -> Tensor:
    return images.double() / 255


class TestLinearGaussianModel:
    def test_exact_posterior_gives_the_exact_likelihood(self, make_run, images) -> None:
        """All importance weights equal p(x) then, so a few samples suffice."""
        model = ProbabilisticPca()
        outputs = make_run(model)
        exact = float(model.log_likelihood(unit(images)).mean())
        assert ELBO.compute(outputs) == pytest.approx(exact, abs=1e-5)
        assert replace(NLL, n_samples=2).compute(outputs) == pytest.approx(-exact, abs=1e-5)

    def test_nll_is_within_its_standard_error(self, make_run, images) -> None:
        model = ProbabilisticPca(widening=1.5, shift=0.05)
        outputs = make_run(model)
        exact = model.log_likelihood(unit(images)).numpy()
        errors, variances = [], []
        for densities in outputs.log_densities(1000):
            estimate = importance_weighted_log_density(densities)
            start = len(errors) * outputs_module.BATCH_SIZE
            errors.append(estimate - exact[start : start + len(estimate)])
            log_weights = densities.observation + densities.prior - densities.posterior
            weights = np.exp(log_weights - estimate[:, None])
            variances.append(weights.var(axis=1) / weights.shape[1])
        error = np.concatenate(errors).mean()
        variance = np.concatenate(variances)
        standard_error = math.sqrt(variance.sum()) / len(variance)
        assert standard_error < 0.005
        # The logarithm biases each estimate by minus half its variance.
        assert abs(error + variance.mean() / 2) < 3 * standard_error
        metric = replace(NLL, n_samples=1000)
        assert metric.compute(outputs) == pytest.approx(-(exact.mean() + error), abs=1e-9)

    def test_bound_and_its_parts_are_within_their_standard_errors(self, make_run, images) -> None:
        model = ProbabilisticPca(widening=2, shift=0.1)
        n_samples = 400
        outputs = make_run(model)
        posterior = model.posterior(unit(images))
        rate = torch.distributions.kl_divergence(posterior, prior()).mean()
        exact_posterior = ProbabilisticPca().posterior(unit(images))
        gap = torch.distributions.kl_divergence(posterior, exact_posterior).mean()
        elbo = model.log_likelihood(unit(images)).mean() - gap
        expected = {"rate": rate, "elbo": elbo, "distortion": -elbo - rate}
        for metric in (RATE, ELBO, DISTORTION):
            value = replace(metric, n_samples=n_samples).compute(outputs)
            terms = np.concatenate(
                [
                    samples_of(metric.part, densities)
                    for densities in outputs.log_densities(n_samples)
                ]
            )
            standard_error = terms.std() / math.sqrt(terms.size)
            assert standard_error < 0.01
            assert abs(value - float(expected[metric.part])) < 3 * standard_error

    def test_nll_falls_with_the_number_of_samples_from_the_bound(self, make_run, images) -> None:
        model = ProbabilisticPca(widening=3, shift=0.3)
        outputs = make_run(model)
        values = [
            -ELBO.compute(outputs),
            *(replace(NLL, n_samples=n).compute(outputs) for n in (4, 32, 256)),
            -float(model.log_likelihood(unit(images)).mean()),
        ]
        assert values == sorted(values, reverse=True)
        assert values[0] - values[-1] > 0.5

    def test_parts_add_up_to_the_bound(self, make_run) -> None:
        outputs = make_run(ProbabilisticPca(widening=2))
        total = RATE.compute(outputs) + DISTORTION.compute(outputs)
        assert ELBO.compute(outputs) == pytest.approx(-total, abs=1e-12)


def samples_of(part: str, densities: LogDensities) -> np.ndarray:
    rate = densities.posterior - densities.prior
    return {"rate": rate, "distortion": -densities.observation}.get(
        part, densities.observation - rate
    )


class TestDensityOfAnImage:
    def test_bernoulli_is_the_mean_over_binarisations(self) -> None:
        images = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
        decoded = torch.tensor([[[[0.1, 0.2], [0.7, 0.9]]]])
        expected = 0.0
        for i in range(16):
            bits = torch.tensor([i >> k & 1 for k in range(4)]).view(1, 1, 2, 2).double()
            probability = Bernoulli(images.double()).log_prob(bits).sum().exp()
            expected += float(probability * Bernoulli(decoded.double()).log_prob(bits).sum())
        assert float(observation_log_density(images, decoded, "bce")) == pytest.approx(expected)

    def test_gaussian_has_unit_variance_and_its_constant(self) -> None:
        images, decoded = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        expected = torch.distributions.Normal(decoded.double(), 1).log_prob(images.double())
        found = observation_log_density(images, decoded, "mse")
        torch.testing.assert_close(found, expected.flatten(1).sum(1))

    def test_saturated_pixels_have_a_finite_density(self) -> None:
        images, decoded = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        assert float(observation_log_density(images, decoded, "bce")) == -400


def test_importance_weights_are_summed_without_underflow() -> None:
    log_weights = np.array([[-2000.0, -2000.0 + math.log(3)]])
    densities = LogDensities(log_weights, np.zeros((1, 2)), np.zeros((1, 2)))
    assert importance_weighted_log_density(densities) == pytest.approx(-2000 + math.log(2))


def built(name: str, loss: str = "bce", **settings) -> nn.Module:
    """A model of the suite with random parameters, also those of its prior."""
    plugin = resolve_model(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = plugin.build(
            input_dim=(1, 32, 32),
            latent_dim=3,
            reconstruction_loss=loss,
            network=Network((1, 32, 32), width=2),
            settings={**plugin.settings, **settings},
        )
    with torch.no_grad():
        for flow in getattr(model, "net", []):
            flow.u.copy_(flow.w)  # which makes planar flows invertible
    return model.eval()


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("name", ["vae", "beta-vae", "vamp", "pythae:VAE_LinNF", "pythae:VAE_IAF"])
def test_equals_get_nll_of_pythae(name, loss, digits) -> None:
    """From the same random numbers; pythae takes ``batch_size`` samples, image by image."""
    model, images, n_samples = built(name, loss), digits.test_images[:3], 64
    for image in images.split(1):
        (densities,) = ModelCodec(model, CPU).log_densities(image, loss, n_samples, seed=7)
        torch.manual_seed(derive_seed("7", "batch 0"))
        with torch.no_grad():
            expected = model.get_nll(image / 255, n_samples=n_samples, batch_size=n_samples)
        found = importance_weighted_log_density(densities)
        assert found == pytest.approx(expected, rel=1e-6, abs=2e-3)


@pytest.mark.parametrize("name", ["wae-imq", "wae-rbf", "swae", "pythae:RAE_L2"])
def test_deterministic_encoders_are_refused(name, make_run, digits) -> None:
    outputs = make_run(built(name), images=digits.test_images[:5], dataset="digits")
    for metric in (ELBO, RATE, DISTORTION, NLL):
        with pytest.raises(MetricMissingError, match="deterministic encoder"):
            metric.compute(outputs)


def test_priors_without_a_density_are_refused(make_run, digits) -> None:
    model = built("hgmvae-u", conditional_prior="none")
    with pytest.raises(MetricMissingError, match="conditional prior"):
        ELBO.compute(make_run(model, images=digits.test_images[:5], dataset="digits"))


def test_models_without_a_prior_density_are_refused(make_run) -> None:
    class PosteriorOnly(nn.Module):
        def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
            raise AssertionError("no draw is needed")

    with pytest.raises(MetricMissingError, match="no prior density"):
        ELBO.compute(make_run(PosteriorOnly()))


def test_controls_have_no_likelihood(make_outputs) -> None:
    with pytest.raises(MetricMissingError, match="no posterior density"):
        ELBO.compute(make_outputs([[0.0]], dataset="digits"))


def test_densities_that_are_not_finite_are_refused(make_run) -> None:
    model = ProbabilisticPca()
    model.prior_log_density = lambda latent: torch.full((len(latent),), torch.nan)
    with pytest.raises(MetricMissingError, match="not all finite"):
        ELBO.compute(make_run(model))


def test_values_depend_on_the_run_only(make_run) -> None:
    model = ProbabilisticPca(widening=2)
    before = torch.random.get_rng_state()
    values = [metric.compute(make_run(model)) for metric in (ELBO, NLL)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    assert [metric.compute(make_run(model)) for metric in (ELBO, NLL)] == values
    assert NLL.compute(make_run(model, identity="another run")) != values[1]


def test_batches_of_images_get_different_draws(make_run, images) -> None:
    repeated = images[:1].expand(2 * outputs_module.BATCH_SIZE, -1, -1, -1)
    outputs = make_run(ProbabilisticPca(widening=2), images=repeated)
    first, second = outputs.log_densities(1)
    assert not np.isin(first.prior, second.prior).any()


def test_memory_is_bounded(make_run, images) -> None:
    drawn, decoded = [], []

    class Counting(ProbabilisticPca):
        def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
            drawn.append(n_samples * len(data))
            return super().sample_posterior(data, n_samples)

        def decoder(self, latent: Tensor) -> dict[str, Tensor]:
            decoded.append(len(latent))
            return super().decoder(latent)

    replace(NLL, n_samples=300).compute(make_run(Counting(), images=images[:150]))
    assert max(drawn) == outputs_module.MAX_DRAWS * outputs_module.BATCH_SIZE
    assert max(decoded) == outputs_module.BATCH_SIZE
    assert sum(drawn) == sum(decoded) == 300 * 150


def test_elbo_rate_and_distortion_share_their_draws(make_run) -> None:
    passes = []

    class Counting(ProbabilisticPca):
        def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
            passes.append(len(data))
            return super().sample_posterior(data, n_samples)

    outputs = make_run(Counting())
    for metric in (ELBO, RATE, DISTORTION):
        metric.compute(outputs)
    assert sum(passes) == len(outputs.test_images)


def test_fingerprint_states_the_samples_and_the_density_of_an_image(make_run) -> None:
    outputs = make_run(ProbabilisticPca())
    assert NLL.fingerprint(outputs) == {
        "split": "test",
        "n_images": 200,
        "observation": "Gaussian, unit variance, pixels in [0, 1]",
        "n_samples": 128,
    }
    assert ELBO.fingerprint(make_run(ProbabilisticPca(), dataset="digits")) == {
        "split": "test",
        "n_images": 200,
        "observation": "Bernoulli, pixels in [0, 1]",
        "n_samples": 4,
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu_within_the_noise(make_run, digits) -> None:
    """Draws differ between devices."""
    values = []
    for device in (CPU, torch.device("cuda")):
        codec = ModelCodec(built("vae").to(device), device)
        outputs = make_run(None, codec=codec, images=digits.test_images, dataset="digits")
        values.append(ELBO.compute(outputs))
    assert values[1] == pytest.approx(values[0], abs=1)
