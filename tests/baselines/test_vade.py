from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

import vae_baselines
from hgmvae.expectation_maximisation import Gaussians
from hgmvae.losses import batch_scatter, fisher_share
from vae_baselines.terms import reconstruction_term
from vae_baselines.vade import cluster_moments, fit_merged, vade_terms

B, K, L = 3, 4, 2
N_SAMPLES = 100_000


def normal(mean, log_var):
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def test_bound_equals_monte_carlo() -> None:
    """The two terms are E[log q(z|x) + log q(c|x) − log p(c) − log p(z|c)], z and c drawn."""
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, B, L, dtype=torch.float64)
    logits = torch.randn(K, dtype=torch.float64)
    mixture_mean, mixture_log_var = torch.randn(2, K, L, dtype=torch.float64)
    latent = normal(mean, log_var).sample()
    ours = sum(vade_terms(latent, mean, log_var, logits, mixture_mean, mixture_log_var))

    components, weights = normal(mixture_mean, mixture_log_var), Categorical(logits=logits)
    joint = weights.probs * components.log_prob(latent.unsqueeze(1)).exp()
    q_z, q_c = normal(mean, log_var), Categorical(joint / joint.sum(dim=1, keepdim=True))
    z, c = q_z.sample((N_SAMPLES,)), q_c.sample((N_SAMPLES,))
    p_z = normal(mixture_mean[c], mixture_log_var[c])
    draws = q_z.log_prob(z) + q_c.log_prob(c) - weights.log_prob(c) - p_z.log_prob(z)
    error = draws.std(dim=0) / math.sqrt(N_SAMPLES)
    assert ((draws.mean(dim=0) - ours).abs() < 4 * error).all()


def run_epoch(model, digits, epoch: int):
    model.train()
    outputs = [model({"data": batch}, epoch=epoch) for batch in digits.split(32)]
    model.update()
    return outputs


def test_pretraining_is_a_plain_autoencoder(build, digits) -> None:
    model = build(vae_baselines.VADE).eval()
    output = model({"data": digits}, epoch=1)
    reconstruction = model.decoder(model.latent_code(digits))["reconstruction"]
    torch.testing.assert_close(
        output.loss, reconstruction_term(reconstruction, digits, "bce").mean()
    )
    assert output.latent_loss == output.cluster_loss == 0


def test_mixture_is_fitted_once_after_the_last_pretraining_epoch(build, digits) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=2, n_components=3)
    run_epoch(model, digits, 1)
    assert not model.fitted
    run_epoch(model, digits, 2)
    assert model.fitted
    fitted = model.mixture_mean.detach().clone()
    assert fitted.unique(dim=0).shape == (3, 4)
    outputs = run_epoch(model, digits, 3)
    assert torch.equal(model.mixture_mean, fitted), "update() only fits, the optimiser moves"
    assert all(output.latent_loss > 0 for output in outputs)
    assert not model.kept_codes


def test_evaluation_keeps_no_codes(build, digits) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=1).eval()
    model({"data": digits}, epoch=1)
    model.train()({"data": digits})  # pythae's sanity check passes no epoch
    model.update()
    assert not model.fitted


def test_fit_finds_planted_clusters_and_prior_samples_them(build) -> None:
    model = build(vae_baselines.VADE, n_components=2)
    torch.manual_seed(0)
    model.kept_codes = [torch.randn(300, 4) - 6, 0.5 * torch.randn(100, 4) + 6]
    model.update()
    order = model.mixture_mean[:, 0].argsort()
    weights = model.mixture_logits.softmax(dim=0)[order]
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]), rtol=0, atol=1e-4)
    std = torch.exp(0.5 * model.mixture_log_var[order]).mean(dim=1)
    torch.testing.assert_close(std, torch.tensor([1.0, 0.5]), rtol=0, atol=0.1)
    samples = model.sample_latent(20_000)
    share = (samples[:, 0] > 0).float().mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)
    assert samples[samples[:, 0] > 0].mean() == pytest.approx(6.0, abs=0.2)


def test_the_likeliest_of_several_fits_finds_what_one_misses(build) -> None:
    """Known answer: a single start merges some of twenty planted clusters."""

    def clusters_found(**settings):
        model = build(vae_baselines.VADE, n_components=20, **settings)
        model.fit_seed = 0
        model.kept_codes = [codes]
        model.update()
        return len(torch.cdist(centres, model.mixture_mean).argmin(dim=1).unique())

    torch.manual_seed(0)
    centres = 4 * torch.randn(20, 4)
    codes = (centres + torch.randn(100, 20, 4)).flatten(0, 1)
    assert clusters_found() < 20
    assert clusters_found(mixture_fits=10) == 20


def test_moments_of_a_cluster_are_those_of_its_gaussians() -> None:
    """Known answer: codes drawn from the Gaussians of a cluster have its mean and variance."""
    torch.manual_seed(0)
    root = torch.randn(3, 2, 2, dtype=torch.float64)
    mixture = Gaussians(
        weights=torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
        means=torch.randn(3, 2, dtype=torch.float64),
        covariances=root @ root.mT,
    )
    weights, means, variances = cluster_moments(mixture, torch.tensor([1, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7], dtype=torch.float64))
    torch.testing.assert_close(means[0], mixture.means[1])
    torch.testing.assert_close(variances[0], mixture.covariances[1].diagonal())
    index = Categorical(torch.tensor([0.2, 0.0, 0.5])).sample((N_SAMPLES,))
    codes = mixture.means[index] + torch.einsum(
        "nij,nj->ni", root[index], torch.randn(N_SAMPLES, 2, dtype=torch.float64)
    )
    error = codes.std(dim=0) / math.sqrt(N_SAMPLES)
    assert ((codes.mean(dim=0) - means[1]).abs() < 4 * error).all()
    torch.testing.assert_close(variances[1], codes.var(dim=0), rtol=0.03, atol=0)


def test_merged_start_finds_clusters_that_are_not_gaussian() -> None:
    """Known answer: the clusters of two concentric rings share their mean; one is wider."""
    torch.manual_seed(0)
    label = torch.arange(2000) % 2
    angle, radius = 2 * math.pi * torch.rand(2000), 1 + 4 * label + 0.1 * torch.randn(2000)
    codes = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    weights, means, variances = fit_merged(codes, 2, seed=0, n_fits=4)
    torch.testing.assert_close(weights, torch.full((2,), 0.5).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(means, torch.zeros(2, 2).double(), atol=0.3, rtol=0)
    # The variance of a coordinate on a circle is half its squared radius.
    order = variances[:, 0].argsort()
    expected = torch.tensor([[0.5, 0.5], [12.5, 12.5]]).double()
    torch.testing.assert_close(variances[order], expected, rtol=0.15, atol=0)


def test_merged_start_is_a_setting(build) -> None:
    model = build(vae_baselines.VADE, n_components=2, mixture_start="merged", mixture_fits=4)
    torch.manual_seed(0)
    codes = torch.cat([torch.randn(200, 4) - 6, 0.5 * torch.randn(200, 4) + 6])
    model.kept_codes = [codes]
    model.update()
    assert model.fitted
    weights, means, variances = fit_merged(codes, 2, model.fit_seed, 4)
    torch.testing.assert_close(model.mixture_logits.softmax(0).double(), weights)
    torch.testing.assert_close(model.mixture_mean.double(), means)
    torch.testing.assert_close(model.mixture_log_var.exp().double(), variances)
    assert weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    centres = means.mean(dim=1).sort().values
    torch.testing.assert_close(centres, torch.tensor([-6.0, 6.0]).double(), atol=0.1, rtol=0)


def test_fisher_term_is_that_of_hgmvae_with_the_clusters_of_vade(build, digits) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=1, n_components=3, fisher_weight=2.0)
    run_epoch(model, digits, 1)
    torch.manual_seed(1)
    without = model({"data": digits}, epoch=2)
    torch.manual_seed(1)
    output = model({"data": digits}, epoch=3)
    assert without.fisher == 0
    mean, log_var = model.encoder(digits).embedding, model.encoder(digits).log_covariance
    log_joint = normal(model.mixture_mean, model.mixture_log_var).log_prob(output.z.unsqueeze(1))
    membership = (log_joint + model.mixture_logits.log_softmax(0)).softmax(dim=1)
    expected = fisher_share(batch_scatter(membership, mean, log_var.exp()))
    torch.testing.assert_close(output.fisher, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(output.loss, without.loss - 2 * output.fisher)
    assert model.eval()({"data": digits}).fisher > 0  # without an epoch all terms are included


def test_default_has_no_fisher_term(build, digits) -> None:
    assert "fisher" not in build(vae_baselines.VADE)({"data": digits}, epoch=1)


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, [0, None, 1, 1, 1]),
        ({"fisher_weight": 1.0}, [0, None, 1, 2, 2]),
        ({"fisher_weight": 1.0, "fisher_delay": 0}, [0, None, 2, 2, 2]),
    ],
)
def test_stages_follow_the_epoch(build, settings, stages) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=2, **settings)
    assert [model.stage(epoch) for epoch in range(1, 6)] == stages


def test_state_dict_restores_the_phase(build, digits) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=1)
    run_epoch(model, digits, 1)
    copy = build(vae_baselines.VADE, pretrain_epochs=1)
    copy.load_state_dict(model.state_dict())
    assert copy.fitted
    assert run_epoch(copy, digits, 2)[0].latent_loss > 0


def test_too_few_codes_for_the_mixture(build, digits) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=1, n_components=100)
    with pytest.raises(ValueError, match="n_components = 100"):
        run_epoch(model, digits, 1)


def test_component_probabilities(build, digits) -> None:
    """Known answer: of two equal clusters, the one at the code has nearly all probability."""
    model = build(vae_baselines.VADE, n_components=2).eval()
    with torch.no_grad():
        mean, _ = model.latent_posterior(digits[:1])
        model.mixture_mean.copy_(torch.cat([mean, mean + 1]))
        odds = math.exp(0.5 * model.latent_dim)  # N(0; 0, I) over N(0; 1, I)
        probabilities = model.component_probabilities(digits[:1])
        assert probabilities[0, 0].item() == pytest.approx(odds / (1 + odds), rel=1e-4)
        model.mixture_logits[1] += 0.5 * model.latent_dim  # the weights compensate for the distance
        probabilities = model.component_probabilities(digits[:1])
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5]]), rtol=1e-4, atol=1e-5)


def test_a_training_without_the_bound_is_refused(build) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=3)
    model.check_epochs(4)
    with pytest.raises(ValueError, match=r"at least 4, not 3; .* pretrain_epochs"):
        model.check_epochs(3)


def test_a_training_without_the_fisher_term_is_refused(build) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=3, fisher_weight=1.0, fisher_delay=2)
    model.check_epochs(6)
    with pytest.raises(ValueError, match=r"at least 6, not 5; .* fisher_delay"):
        model.check_epochs(5)


def test_merged_start_is_fitted_to_the_newest_codes(monkeypatch) -> None:
    monkeypatch.setattr("vae_baselines.vade.MAX_CODES", 400)
    torch.manual_seed(0)
    old, new = torch.randn(400, 2) - 50, torch.randn(400, 2) + 50
    _, means, _ = fit_merged(torch.cat([old, new]), 2, seed=0, n_fits=1)
    assert (means > 40).all()
