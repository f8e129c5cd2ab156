from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vae_baselines
from vae_baselines.factor_vae import permute_dimensions


@pytest.fixture
def model(build):
    return build(vae_baselines.FACTOR_VAE)


def gradients(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


def test_each_loss_trains_its_own_parameters_in_pythaes_two_backward_passes(model, digits) -> None:
    """pythae's AdversarialTrainer computes both gradients before either step."""
    output = model({"data": digits})
    output.autoencoder_loss.backward(retain_graph=True)
    encoder, decoder = gradients(model.encoder), gradients(model.decoder)
    model.discriminator.zero_grad()
    output.discriminator_loss.backward()
    assert all(map(torch.equal, gradients(model.encoder), encoder))
    assert all(map(torch.equal, gradients(model.decoder), decoder))
    own = torch.autograd.grad(
        model.discriminator_loss(output.z.detach()), list(model.discriminator.parameters())
    )
    assert all(gradient.any() for gradient in own)


def test_losses_are_the_sums_of_their_terms(model, digits) -> None:
    output = model({"data": digits})
    autoencoder = output.recon_loss + output.reg_loss + 10 * output.total_correlation_loss
    torch.testing.assert_close(output.autoencoder_loss, autoencoder)
    torch.testing.assert_close(output.loss, output.autoencoder_loss + output.discriminator_loss)


def test_an_undecided_discriminator_gives_no_total_correlation(model, digits) -> None:
    with torch.no_grad():
        model.discriminator.layers[-1].weight.zero_()
        model.discriminator.layers[-1].bias.zero_()
    output = model({"data": digits})
    assert output.total_correlation_loss == 0
    assert output.discriminator_loss.item() == pytest.approx(math.log(2))


class TiedCodes(nn.Module):
    """Logits (real, permuted) of a discriminator that knows that real codes repeat a number."""

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        real = 3 - 10 * (codes[:, 0] - codes[:, 1]).abs()
        return torch.stack([real, torch.zeros_like(real)], dim=1)


def test_the_first_logit_is_that_of_a_real_code(model) -> None:
    torch.manual_seed(0)
    model.discriminator = TiedCodes()
    codes = torch.randn(1000, 1).expand(1000, 4)
    assert model.discriminator_loss(codes) < math.log(2) / 2


def test_permutation_keeps_each_dimension_and_removes_dependence() -> None:
    torch.manual_seed(0)
    codes = torch.randn(2000, 1).expand(2000, 3)
    permuted = permute_dimensions(codes)
    assert torch.equal(permuted.sort(dim=0).values, codes.sort(dim=0).values)
    correlation = torch.corrcoef(permuted.T) - torch.eye(3)
    assert correlation.abs().max() < 4 / math.sqrt(2000)


def test_every_image_is_reconstructed_and_embedded_in_order(model, digits) -> None:
    model.eval()
    assert model({"data": digits}).recon_x.shape == digits.shape
    torch.testing.assert_close(model.embed(digits)[:3], model.embed(digits[:3]))


def test_total_correlation_is_the_log_odds_of_a_real_code(model, digits) -> None:
    """Minimising it makes codes that the discriminator takes for permuted ones."""
    model.discriminator = TiedCodes()
    output = model({"data": digits})
    expected = (3 - 10 * (output.z[:, 0] - output.z[:, 1]).abs()).mean()
    torch.testing.assert_close(output.total_correlation_loss, expected)


def test_reg_loss_is_the_mean_kl_of_the_posteriors(model, digits) -> None:
    model.eval()
    mean, log_var = model.latent_posterior(digits)
    expected = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean()
    torch.testing.assert_close(model({"data": digits}).reg_loss, expected)
