"""What a trained model leaves for the metrics: codes, reconstructions and prior samples.

Everything is computed when first asked for, once, and follows from the model's weights, the data
and the run key alone: a metric that is added later sees the very same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import to_uint8, to_unit
from hgmvae_bench.plugins.image_data import Codes, Labels
from hgmvae_bench.plugins.protocols import (
    BenchmarkModel,
    HasComponents,
    HasLatentPosterior,
    MetricMissingError,
)
from hgmvae_bench.utils.seeding import derive_seed

T = TypeVar("T")

# What a layer makes of a batch stays in a CPU's cache.
BATCH_SIZE = 100


class Codec(Protocol):
    """Something that encodes images, reconstructs them and draws new ones.

    A trained model is one (`ModelCodec`); so are the controls that the models are held against.
    """

    def encode(self, images: Tensor) -> Codes:
        """Deterministic codes (N, L) of uint8 images (N, C, H, W); L is 0 where there are none."""

    def decode(self, codes: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) of codes (N, L)."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 reconstructions (N, C, H, W), decoded from the deterministic codes."""
        return self.decode(torch.from_numpy(self.encode(images)))

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """uint8 images (n_samples, C, H, W) drawn from the prior.

        Raises:
            MetricMissingError: if there is no prior to draw from.
        """

    def latent_posterior(self, images: Tensor) -> tuple[Codes, Codes]:
        """Means and log-variances, each (N, L), of the Gaussian posteriors of uint8 images.

        Raises:
            MetricMissingError: if there are none, as here by default.
        """
        raise MetricMissingError("the model has no Gaussian posterior")

    def component_probabilities(self, images: Tensor) -> Codes:
        """How far each of N uint8 images belongs to each of K components (N, K).

        Raises:
            MetricMissingError: if there are no components, as here by default.
        """
        raise MetricMissingError("the model has no components")


@dataclass(frozen=True)
class ModelCodec(Codec):
    """A trained model as a codec, in eval mode and in batches.

    Attributes:
        model: on ``device``.
        device: where batches are moved to.
    """

    model: BenchmarkModel
    device: torch.device

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        self.model.eval()
        for batch in images.split(BATCH_SIZE):
            yield to_unit(batch.to(self.device))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Codes:
        """Deterministic codes (N, L) of uint8 images (N, C, H, W)."""
        codes = [self.model.latent_code(batch).float().cpu() for batch in self._batches(images)]
        return torch.cat(codes).numpy()

    @torch.inference_mode()
    def sample(self, n_samples: int, seed: int) -> Tensor:
        """uint8 images (n_samples, C, H, W) decoded from draws of the model's prior."""
        return self.decode(self.sample_latents(n_samples, seed))

    @torch.inference_mode()
    def sample_latents(self, n_samples: int, seed: int) -> Tensor:
        """The latents (n_samples, L), drawn from the model's prior, behind `sample`'s images."""
        self.model.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self.model.sample_latent(n_samples)

    @torch.inference_mode()
    def latent_posterior(self, images: Tensor) -> tuple[Codes, Codes]:
        """Means and log-variances, each (N, L), if the model defines them."""
        if not isinstance(self.model, HasLatentPosterior):
            return super().latent_posterior(images)
        batches = map(self.model.latent_posterior, self._batches(images))
        means, log_vars = zip(*batches, strict=True)
        return torch.cat(means).float().cpu().numpy(), torch.cat(log_vars).float().cpu().numpy()

    @torch.inference_mode()
    def component_probabilities(self, images: Tensor) -> Codes:
        """Probabilities (N, K), if the model defines them."""
        if not isinstance(self.model, HasComponents):
            return super().component_probabilities(images)
        batches = map(self.model.component_probabilities, self._batches(images))
        return torch.cat([*batches]).float().cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) of codes or other latents (N, L).

        Raises:
            MetricMissingError: if they are not all finite.
        """
        self.model.eval()
        decoded = []
        for batch in codes.split(BATCH_SIZE):
            images = self.model.decoder(batch.to(self.device))["reconstruction"]
            # Cast to uint8, a NaN would turn into some grey level and be scored as if it were one.
            if not images.isfinite().all():
                raise MetricMissingError("the model's images are not all finite")
            decoded.append(to_uint8(images).cpu())
        return torch.cat(decoded)


@dataclass(frozen=True)
class RunOutputs:
    """The outputs of one run on one dataset.

    Attributes:
        codec: the trained model.
        data: the images; metrics are computed on the test split.
        dataset: the dataset's registered name.
        identity: the run key; seeds of the metrics derive from it.
        device: where a metric may compute.
        weights: folder in which a metric looks for pretrained weights first, if any.
        cache: folder for what is computed once per dataset, such as the classifier behind
            ``fid-classifier``; the user's cache folder if None.
    """

    codec: Codec
    data: ImageData
    dataset: str
    identity: str
    device: torch.device
    weights: Path | None = None
    cache: Path | None = None
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """What several metrics need, such as the features behind FID and KID: computed once."""
        if name not in self._shared:
            self._shared[name] = compute()
        value: T = self._shared[name]
        return value

    def seed(self, purpose: str) -> int:
        """The run's seed in [0, 2³²) for one purpose."""
        return derive_seed(self.identity, purpose)

    @property
    def test_images(self) -> Tensor:
        """uint8 (N, C, H, W)."""
        return self.data.test_images

    @cached_property
    def _encoded(self) -> Codes:
        return _finite(self.codec.encode(self.test_images), "codes")

    @property
    def test_codes(self) -> Codes:
        """Deterministic codes (N, L) of the test images.

        Raises:
            MetricMissingError: if there are none, or they are not all finite.
        """
        return _present(self._encoded)

    @cached_property
    def train_codes(self) -> Codes:
        """Deterministic codes (N, L) of the training images.

        Raises:
            MetricMissingError: if there are none, or they are not all finite.
        """
        return _present(_finite(self.codec.encode(self.data.train_images), "codes"))

    @cached_property
    def posterior(self) -> tuple[Codes, Codes]:
        """Means and log-variances, each (N, L), of the posteriors of the test images.

        Raises:
            MetricMissingError: if the model has none, or they are not all finite.
        """
        mean, log_var = self.codec.latent_posterior(self.data.test_images)
        return _finite(mean, "posterior means"), _finite(log_var, "posterior log-variances")

    @cached_property
    def component_probabilities(self) -> Codes:
        """How far each test image belongs to each of the model's components (N, K).

        Raises:
            MetricMissingError: if the model has none, or they are not all finite.
        """
        probabilities = self.codec.component_probabilities(self.data.test_images)
        return _finite(probabilities, "component probabilities")

    @cached_property
    def reconstructions(self) -> Tensor:
        """uint8 reconstructions (N, C, H, W) of the test images, decoded from their codes."""
        return self.codec.decode(torch.from_numpy(self._encoded))

    @cached_property
    def samples(self) -> Tensor:
        """As many uint8 prior samples (N, C, H, W) as there are test images."""
        return self.codec.sample(len(self.data.test_images), self.seed("samples"))

    @cached_property
    def test_labels(self) -> Labels:
        """Classes (N,) of the test images.

        Raises:
            MetricMissingError: if the dataset has none.
        """
        return self._labels(self.data.test_labels)

    @cached_property
    def train_labels(self) -> Labels:
        """Classes (N,) of the training images.

        Raises:
            MetricMissingError: if the dataset has none.
        """
        return self._labels(self.data.train_labels)

    @cached_property
    def n_classes(self) -> int:
        """Number of classes that occur in the test images."""
        return len(np.unique(self.test_labels))

    @cached_property
    def kmeans_labels(self) -> Labels:
        """k-means clusters (N,) of the test codes, with as many clusters as there are classes."""
        import warnings

        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        kmeans = KMeans(self.n_classes, n_init=10, random_state=self.seed("k-means"))
        with warnings.catch_warnings():
            # Fewer distinct codes than classes: the metrics show that, or say so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels: Labels = kmeans.fit_predict(self.test_codes).astype(np.int64)
        return labels

    @staticmethod
    def _labels(labels: Tensor | None) -> Labels:
        if labels is None:
            raise MetricMissingError("the dataset has no classes")
        array: Labels = labels.numpy()
        return array


def _present(codes: Codes) -> Codes:
    if codes.shape[1] == 0:
        raise MetricMissingError("there are no codes")
    return codes


def _finite(values: Codes, name: str) -> Codes:
    if not np.isfinite(values).all():
        raise MetricMissingError(f"the model's {name} are not all finite")
    return values
