"""What HGMVAE computes: terms of the loss, codes, posterior, prior and probabilities."""

import math

import pytest
import torch
from pythae.models.nn import BaseEncoder

from hgmvae import HGMVAE, HGMVAEConfig, losses
from hgmvae.mixture import latent_moments

from .conftest import (
    SMALL,
    Z_PRIOR_WEIGHTS,
    build,
    every_prior,
    every_reading,
    gradients,
    images,
    run,
)

TERMS = {
    "recon_loss",
    "w_prior",
    "z_prior",
    "mutual_information",
    "total_correlation_components",
    "total_correlation_dimensions",
    "dimension_kl",
    "conditional_prior",
    "fisher",
}
every_estimator = pytest.mark.parametrize("estimator", ["gaussian", "weighted"])


@every_reading
@every_prior
@every_estimator
def test_loss_is_the_weighted_sum_of_its_terms(
    conditional_prior, fisher, coefficient_prior, estimator
):
    weights = dict(zip(Z_PRIOR_WEIGHTS, (0.5, 1.5, 2.0, 0.7), strict=True))
    model = build(
        conditional_prior=conditional_prior,
        fisher=fisher,
        coefficient_prior=coefficient_prior,
        estimator=estimator,
        w_prior_weight=0.3,
        conditional_prior_weight=0.6,
        fisher_weight=0.2,
        **weights,
    )
    output = run(model, images(), dataset_size=100)
    assert {key for key, value in output.items() if value.ndim == 0} == TERMS | {"loss"}
    expected = (
        output.recon_loss
        + 0.3 * output.w_prior
        + 0.5 * output.mutual_information
        + 1.5 * output.total_correlation_components
        + 2.0 * output.total_correlation_dimensions
        + 0.7 * output.dimension_kl
        + 0.6 * output.conditional_prior
        - 0.2 * output.fisher
    )
    torch.testing.assert_close(output.loss, expected)
    assert (output.conditional_prior == 0) == (conditional_prior == "none")
    assert (output.fisher == 0) == (fisher == "none")
    reached = gradients(model, output.loss)
    assert all(name in reached and reached[name].any() for name, _ in model.named_parameters())


@pytest.mark.parametrize("posterior_components", [1, 2])
@every_prior
@pytest.mark.parametrize(
    ("conditional_prior", "fisher"),
    [("none", "sample_log"), ("uniform", "sample_log"), ("responsibility", "batch_share")],
)
def test_an_image_may_have_fewer_gaussians_than_there_are_clusters(
    conditional_prior, fisher, coefficient_prior, posterior_components
):
    model = build(
        conditional_prior=conditional_prior,
        fisher=fisher,
        coefficient_prior=coefficient_prior,
        posterior_components=posterior_components,
        fisher_weight=0.2,
    )
    data = images()
    posterior = model.posterior(data)
    assert posterior.component_mean.shape == (16, posterior_components, 3)
    assert posterior.coefficient_mean.shape == (16, posterior_components)
    reached = gradients(model, run(model, data).loss)
    assert all(name in reached and reached[name].any() for name, _ in model.named_parameters())
    n_probabilities = posterior_components if model.mixture is None else 4
    assert model.component_probabilities(data).shape == (16, n_probabilities)
    assert model.sample_latent(5).shape == (5, 3)


def test_one_gaussian_an_image_makes_the_model_a_vae_with_the_mixture_as_its_prior():
    """Known answer: the latent is N(μ, σ²), and the loss is a VAE's bound minus Fisher."""
    zero = dict.fromkeys(Z_PRIOR_WEIGHTS, 0.0)
    model = build(posterior_components=1, fisher_weight=0.7, reconstruction_loss="bce", **zero)
    assert model.coefficient_mean is None
    data = images()
    output = run(model, data)
    posterior = model.posterior(data)
    mean, log_var = posterior.component_mean[:, 0], posterior.component_log_var[:, 0]
    assert torch.equal(model.latent_code(data), mean)
    for moment, expected in zip(model.latent_posterior(data), (mean, log_var), strict=True):
        torch.testing.assert_close(moment, expected)
    torch.manual_seed(0)
    latent = mean + torch.randn(16, 1, 3)[:, 0] * (log_var / 2).exp()
    torch.testing.assert_close(output.z, latent)
    assert output.w_prior == 0
    components = model.mixture.components()
    log_joint = components.log_density(latent) + components.log_weights
    responsibilities = log_joint.softmax(1)
    divergence = components.divergence(mean, log_var.exp())
    bound = (responsibilities * (divergence - components.log_weights)).sum(1)
    bound = bound + (responsibilities * responsibilities.log()).sum(1)
    torch.testing.assert_close(output.conditional_prior, bound.mean())
    expected_loss = output.recon_loss + output.conditional_prior - 0.7 * output.fisher
    torch.testing.assert_close(output.loss, expected_loss)


def test_posterior_components_of_the_number_of_clusters_are_the_default():
    data = images()
    torch.manual_seed(1)
    default = run(build(), data).loss
    torch.manual_seed(1)
    assert run(build(posterior_components=4), data).loss == default


def test_weights_of_an_image_can_stand_for_the_clusters_only_if_there_are_as_many():
    with pytest.raises(ValueError, match=r"'shared'.* posterior_components"):
        build(conditional_prior="shared", posterior_components=2)


@every_estimator
def test_equal_weights_take_the_closed_form(estimator):
    beta = 0.4
    model = build(estimator=estimator, **dict.fromkeys(Z_PRIOR_WEIGHTS, beta)).double()
    data = images().double()
    output = run(model, data, dataset_size=100)
    fast = gradients(model, output.loss)
    # A tiny difference between the weights disables the closed form.
    for index, name in enumerate(Z_PRIOR_WEIGHTS):
        setattr(model.model_config, name, beta + 1e-13 * index)
    long = run(model, data, dataset_size=100)
    torch.testing.assert_close(output.loss, long.loss)
    for name, gradient in gradients(model, long.loss).items():
        torch.testing.assert_close(fast[name], gradient, msg=name)


def test_code_is_the_mean_of_the_latent_and_deterministic():
    model, data, n_draws = build(coefficient_prior="gaussian").eval(), images(1), 20_000
    latent = run(model, data.expand(n_draws, -1, -1, -1)).z
    error = latent.std(0) / n_draws**0.5
    code = model.latent_code(data)
    assert ((latent.mean(0) - code[0]).abs() < 4 * error).all()
    assert torch.equal(code, model.embed(data))
    assert torch.equal(model.reconstruct(data), model.predict(data).recon_x)


def test_latent_has_the_moments_of_eq_1():
    model, data, n_draws = build().eval(), images(1), 20_000
    latent = run(model, data.expand(n_draws, -1, -1, -1)).z
    posterior = model.posterior(data)
    _, variance = latent_moments(
        posterior.coefficient_mean, posterior.component_mean, posterior.component_log_var
    )
    squared = (latent - latent.mean(0)).square()
    assert ((squared.mean(0) - variance[0]).abs() < 4 * squared.std(0) / n_draws**0.5).all()


@pytest.mark.parametrize("coefficient_prior", ["gaussian", "uniform"])
def test_prior_without_a_mixture_is_eq_1_of_the_priors(coefficient_prior):
    model = build(coefficient_prior=coefficient_prior, conditional_prior="none", fisher="none")
    assert model.mixture is None
    x, n_components = model.sample_latent(50_000), SMALL["n_components"]
    # Var x = E Σ w²: K for N(0, I); 2 / (K + 1) for the flat Dirichlet distribution.
    expected = n_components if coefficient_prior == "gaussian" else 2 / (n_components + 1)
    assert x.mean().abs() < 4 * x.std() / x.numel() ** 0.5
    assert abs(x.square().mean() - expected) < 4 * x.square().std() / x.numel() ** 0.5


@pytest.mark.parametrize("conditional_prior", ["responsibility", "uniform", "shared"])
def test_prior_is_the_mixture(conditional_prior):
    model = build(conditional_prior=conditional_prior)
    torch.nn.init.normal_(model.mixture.logits)
    torch.nn.init.normal_(model.mixture.mean, std=20)
    x = model.sample_latent(20_000)
    nearest = torch.cdist(x, model.mixture.mean).argmin(1)
    share = torch.bincount(nearest, minlength=8) / len(x)
    components = model.mixture.components()
    expected = components.log_weights.exp()
    if conditional_prior != "responsibility":
        expected = components.by_component(torch.full((4,), 0.25))
    error = (expected * (1 - expected) / len(x)).sqrt()
    assert ((share - expected).abs() < 4 * error).all()


def test_encoder_without_feature_dim_is_refused():
    with pytest.raises(AttributeError, match="feature_dim"):
        HGMVAE(HGMVAEConfig(**SMALL), encoder=BaseEncoder())


def test_default_encoder_needs_an_image_shape():
    with pytest.raises(AttributeError, match="input_dim"):
        HGMVAE(HGMVAEConfig(latent_dim=2), decoder=build().decoder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 0),
        ("posterior_components", 0),
        ("subcomponents", 0),
        ("warmup_epochs", -1),
        ("fisher_weight", -1.0),
        ("w_prior_weight", float("nan")),
        ("fisher", "raw"),
        ("conditional_prior", "learned"),
    ],
)
def test_config_errors_name_the_setting(name, value):
    with pytest.raises(ValueError, match=name):
        HGMVAEConfig(**{**SMALL, name: value})


def test_objective_uses_the_terms_of_the_losses_module():
    model, data = build(coefficient_prior="uniform"), images()
    output = run(model, data)
    posterior = model.posterior(data)
    expected = losses.uniform_w_prior(posterior.coefficient_mean)
    torch.testing.assert_close(output.w_prior, expected)
    expected = losses.reconstruction_term(output.recon_x, data, "mse")
    torch.testing.assert_close(output.recon_loss, expected)


@torch.no_grad()
def test_posterior_of_random_coefficients_by_hand():
    """Var[wz] of independent w ~ N(2, 0.25) and z ~ N(3, 4): 2²·4 + 0.25·3² + 0.25·4 = 19.25."""
    model = build(coefficient_prior="gaussian", n_components=1).eval()
    for layer, value in (
        (model.component_mean, 3.0),
        (model.component_log_var, math.log(4)),
        (model.coefficient_mean, 2.0),
        (model.coefficient_log_var, math.log(0.25)),
    ):
        layer.weight.zero_()
        layer.bias.fill_(value)
    mean, log_var = model.latent_posterior(images(2))
    torch.testing.assert_close(mean, torch.full_like(mean, 6.0))
    torch.testing.assert_close(log_var.exp(), torch.full_like(log_var, 19.25))


@torch.no_grad()
def test_component_probabilities_are_those_of_the_clusters():
    model = build(n_components=2, subcomponents=2).eval()
    assert model.mixture is not None
    data = images(2)
    code = model.latent_code(data)
    # Components 0 and 2 form cluster 0. One is at the first image's code, the others far away.
    model.mixture.mean.copy_(torch.full_like(model.mixture.mean, 1e3))
    model.mixture.mean[2] = code[0]
    probabilities = model.component_probabilities(data[:1])
    torch.testing.assert_close(probabilities, torch.tensor([[1.0, 0.0]]))
    model.mixture.mean[1] = code[0]
    probabilities = model.component_probabilities(data[:1])
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5]]))
    # With Eq. 4 as printed the clusters are equally likely whatever the weights of the mixture.
    for reading, expected in (("responsibility", 0.75), ("uniform", 0.5)):
        model = build(conditional_prior=reading, n_components=2, subcomponents=2).eval()
        model.mixture.mean.copy_(torch.full_like(model.mixture.mean, 1e3))
        model.mixture.mean[1:3] = model.latent_code(data)[0]
        model.mixture.logits[::2] = math.log(3)
        probabilities = model.component_probabilities(data[:1])
        torch.testing.assert_close(probabilities, torch.tensor([[expected, 1 - expected]]))
    # Without a global mixture they are the image's own weights.
    alone = build(conditional_prior="none", fisher="none", n_components=2).eval()
    torch.testing.assert_close(
        alone.component_probabilities(data), alone.posterior(data).coefficient_mean
    )


def test_terms_are_those_of_the_drawn_coefficients():
    """Given the coefficients, the moments of the latent enter the terms, not its sample."""
    model, data = build(coefficient_prior="gaussian", fisher="batch_share"), images()
    output, posterior = run(model, data), model.posterior(data)
    torch.manual_seed(0)
    draw = posterior.draw()
    weights, variance = draw.coefficients.unsqueeze(-1), posterior.component_log_var.exp()
    moments = (weights * posterior.component_mean).sum(1), (weights.square() * variance).sum(1)
    components = model.mixture.components()
    responsibilities = components.responsibilities(draw.latent)
    torch.testing.assert_close(
        output.conditional_prior,
        losses.responsibility_prior(
            responsibilities, components.log_weights, components.divergence(*moments)
        ),
    )
    membership = components.by_cluster(responsibilities)
    expected = losses.fisher_share(losses.batch_scatter(membership, *moments))
    torch.testing.assert_close(output.fisher, expected)


def test_terms_as_printed_are_those_of_the_drawn_coefficients():
    """Eq. 4 with the shares w² / Σ w² of Gaussian coefficients, and the mean of log(1 + Eq. 13)."""
    settings = {"conditional_prior": "shared", "fisher": "sample_log"}
    model, data = build(coefficient_prior="gaussian", **settings), images()
    output, posterior = run(model, data), model.posterior(data)
    torch.manual_seed(0)
    weights = posterior.draw().coefficients
    mean, log_var = posterior.component_mean, posterior.component_log_var
    share = weights.square() / weights.square().sum(1, keepdim=True)
    components = model.mixture.components()
    divergence = components.divergence(mean, log_var.exp())
    expected = losses.mixture_cross_kl(share, components.by_component(share), divergence)
    torch.testing.assert_close(output.conditional_prior, expected)
    expected = losses.sample_fisher(weights, mean, log_var).log1p().mean()
    torch.testing.assert_close(output.fisher, expected)


def test_the_weighted_estimator_uses_the_size_of_the_dataset():
    """Log q(z) falls by log 10 with ten times as many images."""
    model, data = build(estimator="weighted"), images()
    few, many = (run(model, data, dataset_size=n).mutual_information for n in (100, 1000))
    assert (many - few).item() == pytest.approx(math.log(10), abs=1e-3)
