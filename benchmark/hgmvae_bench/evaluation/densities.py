"""Densities of images given latents, and of latents given images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hgmvae_bench.plugins.protocols import (
    BenchmarkModel,
    HasLatentPosterior,
    HasPosteriorDensity,
    MetricMissingError,
    ReconstructionLoss,
)

LOG_2PI = math.log(2 * math.pi)

PosteriorSampler = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def observation_log_density(
    images: Tensor, reconstructions: Tensor, loss: ReconstructionLoss
) -> Tensor:
    """Compute log p(image | latent), in nats, float64 (B,).

    These are the densities of pythae's ``get_nll``. ``bce`` is a Bernoulli distribution per pixel
    with the reconstruction as its mean: the negative cross-entropy, in which a pixel in (0, 1)
    counts like the mean over random binarisations of it. ``mse`` is a Gaussian of unit variance
    with the reconstruction as its mean, including its constant.

    Args:
        images: pixels in [0, 1], (B, C, H, W).
        reconstructions: decoded latents, (B, C, H, W).
        loss: reconstruction loss of the dataset.
    """
    images, reconstructions = images.double(), reconstructions.double()
    if loss == "bce":
        # torch bounds the logarithms below by -100, as in the training loss.
        pixels = -F.binary_cross_entropy(reconstructions, images, reduction="none")
    else:
        pixels = -0.5 * ((reconstructions - images).square() + LOG_2PI)
    return pixels.flatten(1).sum(dim=1)


def posterior_sampler(model: BenchmarkModel) -> PosteriorSampler:
    """Return the function that draws latents of images along with their log-densities.

    It has the signature of `HasPosteriorDensity.sample_posterior`.

    Raises:
        MetricMissingError: if the model's posterior has no density.
    """
    if isinstance(model, HasPosteriorDensity):
        return model.sample_posterior
    if not isinstance(model, HasLatentPosterior):
        raise MetricMissingError("the model's posterior has no density (deterministic encoder)")

    def sample(data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        mean, log_var = model.latent_posterior(data)
        noise = torch.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        log_density = -0.5 * (noise.double().square() + log_var.double() + LOG_2PI).sum(dim=-1)
        return mean + (0.5 * log_var).exp() * noise, log_density

    return sample
