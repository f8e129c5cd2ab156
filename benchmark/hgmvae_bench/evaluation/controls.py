"""Controls: what no model has learned, scored as if a model had made it.

They say what a metric's value means on a dataset. Real images against real ones are the floor of
every distance of distributions, the mean image and pixel noise are what a useless model would
give, and PCA is what straight lines give with as many dimensions as the models have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import to_uint8, to_unit
from hgmvae_bench.evaluation.outputs import BATCH_SIZE, Codec, RunOutputs
from hgmvae_bench.evaluation.scoring import score
from hgmvae_bench.plugins.image_data import Codes
from hgmvae_bench.plugins.protocols import MetricMissingError, Need
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import MetricValue
from hgmvae_bench.utils.seeding import derive_seed

# PCA is fitted to at most so many pixels (1 GiB of float32): all of MNIST and CIFAR-10.
MAX_PCA_PIXELS = 2**28
# Up to so many dimensions, exact eigenvectors are a matter of seconds.
MAX_EXACT_PIXELS = 4096


class CodelessControl(Codec):
    """A control that has images but no codes."""

    def encode(self, images: Tensor) -> Codes:
        """Codes (N, 0): none."""
        return np.empty((len(images), 0), dtype=np.float32)

    def decode(self, codes: Tensor) -> Tensor:
        """Not to be had, unless a control says otherwise.

        Raises:
            MetricMissingError: always.
        """
        raise MetricMissingError("this control has no reconstructions")


@dataclass(frozen=True)
class RealImages(CodelessControl):
    """Draws real images instead of making them.

    Attributes:
        images: uint8 (N, C, H, W) to draw from, without repetition.
    """

    images: Tensor

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """``n_samples`` different images.

        Raises:
            MetricMissingError: if there are fewer.
        """
        if n_samples > len(self.images):
            raise MetricMissingError(
                f"there are {len(self.images):,} images to draw {n_samples:,} from"
            )
        return self.images[_permutation(len(self.images), seed)[:n_samples]]


@dataclass(frozen=True)
class MeanImage(CodelessControl):
    """Answers every image with the mean training image.

    Attributes:
        train_images: uint8 (N, C, H, W).
    """

    train_images: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """The mean image, uint8 (1, C, H, W)."""
        total = sum(batch.double().sum(0) for batch in self.train_images.split(BATCH_SIZE))
        return to_uint8((total / len(self.train_images) / 255)[None])

    def decode(self, codes: Tensor) -> Tensor:
        """The mean image as often as there are codes."""
        return self.mean.expand(len(codes), -1, -1, -1)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """The mean image ``n_samples`` times."""
        return self.mean.expand(n_samples, -1, -1, -1)


@dataclass(frozen=True)
class PixelNoise(CodelessControl):
    """Answers every image with independent uniform pixels.

    Attributes:
        input_dim: shape (C, H, W) of an image.
        seed: of the reconstructions.
    """

    input_dim: tuple[int, int, int]
    seed: int

    def decode(self, codes: Tensor) -> Tensor:
        """As many noise images as there are codes."""
        return self.sample(len(codes), self.seed)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """``n_samples`` noise images."""
        generator = torch.Generator().manual_seed(seed)
        size = (n_samples, *self.input_dim)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


@dataclass(frozen=True)
class PrincipalComponents(Codec):
    """PCA as a model: codes are coordinates, and its prior is the Gaussian of the train codes.

    Attributes:
        train_images: uint8 (N, C, H, W) that it is fitted to.
        latent_dim: number of components L.
        seed: of the choice of images where there are too many, and of the approximate solution
            where they are too large for the exact one.
    """

    train_images: Tensor
    latent_dim: int
    seed: int

    @cached_property
    def _fit(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (D,), components (L, D) and standard deviations (L,)."""
        from sklearn.decomposition import PCA

        n_images, n_pixels = len(self.train_images), self.train_images[0].numel()
        if self.latent_dim > min(n_images, n_pixels):
            raise MetricMissingError(
                f"{n_images:,} images of {n_pixels:,} pixels have no {self.latent_dim} components"
            )
        images = self.train_images
        if n_images * n_pixels > MAX_PCA_PIXELS:
            images = images[_permutation(n_images, self.seed)[: MAX_PCA_PIXELS // n_pixels]]
        exact = n_pixels <= MAX_EXACT_PIXELS
        pca = PCA(
            self.latent_dim,
            svd_solver="covariance_eigh" if exact else "randomized",
            random_state=self.seed,
        ).fit(to_unit(images.flatten(1)).numpy())
        scales = np.sqrt(pca.explained_variance_)
        mean, components, deviations = map(torch.from_numpy, (pca.mean_, pca.components_, scales))
        return mean, components, deviations

    def encode(self, images: Tensor) -> Codes:
        """Coordinates (N, L) of uint8 images."""
        mean, components, _ = self._fit
        codes = [
            (to_unit(batch.flatten(1)) - mean) @ components.T for batch in images.split(BATCH_SIZE)
        ]
        return torch.cat(codes).numpy()

    def decode(self, codes: Tensor) -> Tensor:
        """The images with these coordinates."""
        mean, components, _ = self._fit
        shape = self.train_images.shape[1:]
        images = [
            to_uint8((batch @ components + mean).unflatten(1, shape))
            for batch in codes.split(BATCH_SIZE)
        ]
        return torch.cat(images)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Images of codes from N(0, diag(variances of the train codes)), which are uncorrelated."""
        generator = torch.Generator().manual_seed(seed)
        deviations = self._fit[2]
        return self.decode(
            torch.randn(n_samples, self.latent_dim, generator=generator) * deviations
        )


@dataclass(frozen=True)
class TestSetHalves(RunOutputs):
    """One half of the test images as prior samples, held against the other half."""

    @cached_property
    def _order(self) -> Tensor:
        return _permutation(len(self.data.test_images), self.seed("halves"))

    @property
    def test_images(self) -> Tensor:
        """The first half, uint8 (N / 2, C, H, W)."""
        return self.data.test_images[self._order[: len(self._order) // 2]]

    @cached_property
    def samples(self) -> Tensor:
        """The second half, of the same size."""
        half = len(self._order) // 2
        return self.data.test_images[self._order[half : 2 * half]]


@dataclass(frozen=True)
class Control:
    """A control of one dataset.

    Attributes:
        name: ``real-halves``, ``real-train``, ``mean-image``, ``pixel-noise`` or ``pca``.
        title: the name in tables.
        latent_dim: L of ``pca``; None for controls that have no codes.
        provides: what a metric may need of it.
        outputs: what it gives, as a run would; ``outputs.identity`` tells it from all others.
    """

    name: str
    title: str
    latent_dim: int | None
    provides: frozenset[Need]
    outputs: RunOutputs

    @property
    def comparable(self) -> bool:
        """Whether its values count the same images as a model's, and may stand beside them."""
        return not isinstance(self.outputs, TestSetHalves)

    def applicable_metrics(self, metrics: Iterable[str]) -> list[str]:
        """Those of the metrics, by registered names, that make sense for the control."""
        return [name for name in metrics if self.provides.issuperset(METRICS[name].needs)]

    def score(self, metrics: Iterable[str]) -> dict[str, MetricValue]:
        """Compute those of the metrics, by registered names, that make sense for the control."""
        return score(self.outputs, self.applicable_metrics(metrics))


def build_controls(
    data: ImageData,
    dataset: str,
    latent_dims: Iterable[int],
    *,
    device: torch.device,
    weights: Path | None = None,
    cache: Path | None = None,
) -> Iterator[Control]:
    """The controls of a dataset, PCA once per latent dim.

    Args:
        data: the dataset as the models have it.
        dataset: its registered name.
        latent_dims: dims of the models that PCA stands beside.
        device: where a metric may compute.
        weights: as in `hgmvae_bench.evaluation.outputs.RunOutputs`.
        cache: as there.
    """
    noise_seed = derive_seed(_identity("pixel-noise", data), "reconstructions")
    pca_seed = derive_seed(_identity("pca", data), "fit")
    samples: frozenset[Need] = frozenset({"samples", "labels"})
    images: frozenset[Need] = samples | {"reconstructions"}
    everything: frozenset[Need] = images | {"codes"}

    def control(
        name: str,
        title: str,
        provides: frozenset[Need],
        codec: Codec,
        latent_dim: int | None = None,
        kind: type[RunOutputs] = RunOutputs,
    ) -> Control:
        identity = _identity(name if latent_dim is None else f"{name} L{latent_dim}", data)
        outputs = kind(codec, data, dataset, identity, device, weights, cache)
        return Control(name, title, latent_dim, provides, outputs)

    halves = RealImages(data.test_images)
    yield control("real-halves", "Real (two halves)", samples, halves, kind=TestSetHalves)
    train = RealImages(data.train_images)
    yield control("real-train", "Real (training images)", samples, train)
    yield control("mean-image", "Mean image", images, MeanImage(data.train_images))
    yield control("pixel-noise", "Pixel noise", images, PixelNoise(data.input_dim, noise_seed))
    for latent_dim in latent_dims:
        codec = PrincipalComponents(data.train_images, latent_dim, pca_seed)
        yield control("pca", "PCA", everything, codec, latent_dim)


def _identity(name: str, data: ImageData) -> str:
    return f"control {name} {data.digest}"


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
