"""Outputs of a trained model that metrics read: codes, reconstructions and prior samples.

Each output is computed on first access and then cached. It follows from the model's weights, the
data and the run key alone, so a metric that is added later sees the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.data.pixels import to_uint8, to_unit
from hgmvae_bench.evaluation.densities import observation_log_density, posterior_sampler
from hgmvae_bench.plugins.image_data import Codes, Labels
from hgmvae_bench.plugins.protocols import (
    BenchmarkModel,
    HasComponents,
    HasLatentPosterior,
    HasPriorDensity,
    LogDensities,
    MetricMissingError,
    ReconstructionLoss,
)
from hgmvae_bench.utils.seeding import derive_seed

T = TypeVar("T")

# With batches of this size, a layer's activations fit into a CPU's cache.
BATCH_SIZE = 100

# Latents per image that are drawn from the posterior at a time.
MAX_DRAWS = 128

# Latents whose prior density is computed at a time; mixtures compare each with every component.
PRIOR_CHUNK = 1000


class Codec(Protocol):
    """Encoder, decoder and sampler of images.

    `ModelCodec` wraps a trained model; the controls in `hgmvae_bench.evaluation.controls`
    implement the same interface. Images are uint8 (N, C, H, W).
    """

    def encode(self, images: Tensor) -> Codes:
        """Return deterministic codes (N, L) of images; L is 0 for a codec without codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images that codes (N, L) decode to."""

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Draw ``n_samples`` images from the prior.

        Raises:
            MetricMissingError: if there is no prior.
        """

    def latent_posterior(self, images: Tensor) -> tuple[Codes, Codes]:
        """Return means and log-variances, each (N, L), of the images' Gaussian posteriors.

        Raises:
            MetricMissingError: if there is no such posterior, which is the default.
        """
        raise MetricMissingError("the model has no Gaussian posterior")

    def log_densities(
        self, images: Tensor, loss: ReconstructionLoss, n_samples: int, seed: int
    ) -> Iterator[LogDensities]:
        """Draw latents from the images' posteriors and yield log-densities of image batches.

        Raises:
            MetricMissingError: if the posterior or the prior has no density, which is the default.
        """
        raise MetricMissingError("there is no posterior density")

    def component_probabilities(self, images: Tensor) -> Codes:
        """Return the probabilities (N, K) with which the images belong to K components.

        Raises:
            MetricMissingError: if there are no components, which is the default.
        """
        raise MetricMissingError("the model has no components")


@dataclass(frozen=True)
class ModelCodec(Codec):
    """Codec of a trained model, which runs in eval mode and in batches.

    Attributes:
        model: the model, on ``device``.
        device: device to which batches are moved.
    """

    model: BenchmarkModel
    device: torch.device

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        self.model.eval()
        for batch in images.split(BATCH_SIZE):
            yield to_unit(batch.to(self.device))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Codes:
        """Return deterministic codes (N, L) of uint8 images (N, C, H, W)."""
        codes = [self.model.latent_code(batch).float().cpu() for batch in self._batches(images)]
        return torch.cat(codes).numpy()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes or other latents (N, L) to uint8 images (N, C, H, W).

        Raises:
            MetricMissingError: if an image is not finite.
        """
        self.model.eval()
        decoded = [
            to_uint8(self._decode(batch.to(self.device))).cpu() for batch in codes.split(BATCH_SIZE)
        ]
        return torch.cat(decoded)

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.model.decoder(latents)["reconstruction"]
        # A conversion to uint8 would turn a NaN into a valid grey level.
        if not images.isfinite().all():
            raise MetricMissingError("the model's images are not all finite")
        return images

    @torch.inference_mode()
    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Draw latents from the model's prior and decode them to uint8 (n_samples, C, H, W)."""
        return self.decode(self.sample_latents(n_samples, seed))

    @torch.inference_mode()
    def sample_latents(self, n_samples: int, seed: int) -> Tensor:
        """Draw the latents (n_samples, L) that `sample` decodes for the same arguments."""
        self.model.eval()
        with self._seeded(seed):
            return self.model.sample_latent(n_samples)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Seed torch's global generators for a block and restore them afterwards."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @torch.inference_mode()
    def latent_posterior(self, images: Tensor) -> tuple[Codes, Codes]:
        """Return posterior means and log-variances, each (N, L), if the model defines them."""
        if not isinstance(self.model, HasLatentPosterior):
            return super().latent_posterior(images)
        batches = map(self.model.latent_posterior, self._batches(images))
        means, log_vars = zip(*batches, strict=True)
        return torch.cat(means).float().cpu().numpy(), torch.cat(log_vars).float().cpu().numpy()

    @torch.inference_mode()
    def component_probabilities(self, images: Tensor) -> Codes:
        """Return component probabilities (N, K) if the model defines them."""
        if not isinstance(self.model, HasComponents):
            return super().component_probabilities(images)
        batches = map(self.model.component_probabilities, self._batches(images))
        return torch.cat([*batches]).float().cpu().numpy()

    @torch.inference_mode()
    def log_densities(
        self, images: Tensor, loss: ReconstructionLoss, n_samples: int, seed: int
    ) -> Iterator[LogDensities]:
        """Yield log-densities of image batches if the model defines those of latents.

        Memory is bounded: at most `MAX_DRAWS` latents of an image are drawn at a time, and
        `BATCH_SIZE` latents are decoded at a time.
        """
        for index, batch in enumerate(self._batches(images)):
            with self._seeded(derive_seed(str(seed), f"batch {index}")):
                parts = [
                    self._draw_log_densities(batch, loss, min(MAX_DRAWS, n_samples - start))
                    for start in range(0, n_samples, MAX_DRAWS)
                ]
            densities = torch.cat(parts, dim=1).transpose(1, 2).cpu().numpy()
            if not np.isfinite(densities).all():
                raise MetricMissingError("the model's log-densities are not all finite")
            yield LogDensities(*densities)

    def _draw_log_densities(self, images: Tensor, loss: ReconstructionLoss, n_draws: int) -> Tensor:
        """Log-densities of images, their latents' prior and posterior, float64 (3, S, B)."""
        sample = posterior_sampler(self.model)
        if not isinstance(self.model, HasPriorDensity):
            raise MetricMissingError("the model has no prior density")
        try:
            latents, posterior = sample(images, n_draws)
            chunks = latents.flatten(0, 1).split(PRIOR_CHUNK)
            prior = torch.cat([self.model.prior_log_density(chunk) for chunk in chunks])
        except NotImplementedError as reason:
            raise MetricMissingError(str(reason)) from reason
        observation = self._observation_log_density(images, latents, loss)
        return torch.stack([observation, prior.view_as(posterior).double(), posterior.double()])

    def _observation_log_density(
        self, images: Tensor, latents: Tensor, loss: ReconstructionLoss
    ) -> Tensor:
        """Log p(image | latent), float64 (S, B), of images (B, C, H, W) and latents (S, B, M)."""
        codes = latents[..., : self.model.latent_dim].flatten(0, 1)
        image_index = torch.arange(len(codes), device=codes.device) % len(images)
        values = [
            observation_log_density(images[indices], self._decode(batch), loss)
            for batch, indices in zip(
                codes.split(BATCH_SIZE), image_index.split(BATCH_SIZE), strict=True
            )
        ]
        return torch.cat(values).view(latents.shape[:2])


@dataclass(frozen=True)
class RunOutputs:
    """Outputs of one run; implements `hgmvae_bench.plugins.protocols.Outputs`.

    Attributes:
        codec: the trained model.
        data: images and labels; metrics are computed on the test split.
        dataset: registered name of the dataset.
        identity: the run key, from which the seeds of metrics are derived.
        device: device on which a metric may compute.
        weights: folder that is searched first for pretrained weights.
        cache: folder for results that are computed once per dataset, such as the classifier behind
            ``fid-classifier``; None for the user's cache folder.
    """

    codec: Codec
    data: ImageData
    dataset: str
    identity: str
    device: torch.device
    weights: Path | None = None
    cache: Path | None = None
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def reconstruction_loss(self) -> ReconstructionLoss:
        """Reconstruction loss of the dataset."""
        return resolve_dataset(self.dataset).reconstruction_loss

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached under ``name`` for the other metrics of the run."""
        if name not in self._shared:
            self._shared[name] = compute()
        value: T = self._shared[name]
        return value

    def seed(self, purpose: str) -> int:
        """Return the run's seed in [0, 2³²) for one purpose."""
        return derive_seed(self.identity, purpose)

    @property
    def test_images(self) -> Tensor:
        """Test images, uint8 (N, C, H, W)."""
        return self.data.test_images

    @cached_property
    def _encoded(self) -> Codes:
        return _require_finite(self.codec.encode(self.test_images), "codes")

    @property
    def test_codes(self) -> Codes:
        """Deterministic codes (N, L) of the test images.

        Raises:
            MetricMissingError: if there are none, or they are not all finite.
        """
        return _require_codes(self._encoded)

    @cached_property
    def train_codes(self) -> Codes:
        """Deterministic codes (M, L) of the training images.

        Raises:
            MetricMissingError: if there are none, or they are not all finite.
        """
        return _require_codes(_require_finite(self.codec.encode(self.data.train_images), "codes"))

    @cached_property
    def posterior(self) -> tuple[Codes, Codes]:
        """Means and log-variances, each (N, L), of the test images' Gaussian posteriors.

        Raises:
            MetricMissingError: if the model has none, or they are not all finite.
        """
        mean, log_var = self.codec.latent_posterior(self.data.test_images)
        return (
            _require_finite(mean, "posterior means"),
            _require_finite(log_var, "posterior log-variances"),
        )

    @cached_property
    def component_probabilities(self) -> Codes:
        """Probabilities (N, K) with which the test images belong to the model's components.

        Raises:
            MetricMissingError: if the model has none, or they are not all finite.
        """
        probabilities = self.codec.component_probabilities(self.data.test_images)
        return _require_finite(probabilities, "component probabilities")

    def log_densities(self, n_samples: int) -> Iterator[LogDensities]:
        """Yield log-densities of ``n_samples`` latents per test image, in batches of images.

        Raises:
            MetricMissingError: if the posterior or the prior has no density, or a value is not
                finite.
        """
        seed = self.seed("posterior samples")
        return self.codec.log_densities(self.test_images, self.reconstruction_loss, n_samples, seed)

    @cached_property
    def reconstructions(self) -> Tensor:
        """Reconstructions of the test images from their codes, uint8 (N, C, H, W)."""
        return self.codec.decode(torch.from_numpy(self._encoded))

    @cached_property
    def samples(self) -> Tensor:
        """Prior samples, as many as there are test images, uint8 (N, C, H, W)."""
        return self.codec.sample(len(self.data.test_images), self.seed("samples"))

    @cached_property
    def test_labels(self) -> Labels:
        """Classes (N,) of the test images.

        Raises:
            MetricMissingError: if the dataset has none.
        """
        return _require_labels(self.data.test_labels)

    @cached_property
    def train_labels(self) -> Labels:
        """Classes (M,) of the training images.

        Raises:
            MetricMissingError: if the dataset has none.
        """
        return _require_labels(self.data.train_labels)

    @cached_property
    def n_classes(self) -> int:
        """Number of classes among the test images."""
        return len(np.unique(self.test_labels))

    @cached_property
    def kmeans_labels(self) -> Labels:
        """k-means clusters (N,) of the test codes, as many as there are classes."""
        import warnings

        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        kmeans = KMeans(self.n_classes, n_init=10, random_state=self.seed("k-means"))
        with warnings.catch_warnings():
            # Raised for fewer distinct codes than classes, which the metrics report themselves.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels: Labels = kmeans.fit_predict(self.test_codes).astype(np.int64)
        return labels


def _require_codes(codes: Codes) -> Codes:
    if codes.shape[1] == 0:
        raise MetricMissingError("there are no codes")
    return codes


def _require_finite(values: Codes, name: str) -> Codes:
    if not np.isfinite(values).all():
        raise MetricMissingError(f"the model's {name} are not all finite")
    return values


def _require_labels(labels: Tensor | None) -> Labels:
    if labels is None:
        raise MetricMissingError("the dataset has no classes")
    array: Labels = labels.numpy()
    return array
