"""Controls: reference images and PCA, scored with the metrics of the models.

Controls give a metric's values on a dataset a scale. Real images compared with real images are the
floor of every distance between distributions; the mean image and pixel noise are what a useless
model reaches; PCA is the best linear code with as many dimensions as the models.
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

# PCA is fitted to at most this many pixels (1 GiB of float32): all of MNIST and of CIFAR-10.
MAX_PCA_PIXELS = 2**28
# Images of at most this many pixels get exact eigenvectors, which take seconds.
MAX_EXACT_PIXELS = 4096


class CodelessControl(Codec):
    """A control that has images but no codes."""

    def encode(self, images: Tensor) -> Codes:
        """Return empty codes (N, 0)."""
        return np.empty((len(images), 0), dtype=np.float32)

    def decode(self, codes: Tensor) -> Tensor:
        """Refuse to decode; subclasses with reconstructions override this.

        Raises:
            MetricMissingError: always.
        """
        raise MetricMissingError("this control has no reconstructions")


@dataclass(frozen=True)
class RealImages(CodelessControl):
    """Real images in place of samples.

    Attributes:
        images: uint8 (N, C, H, W), drawn without replacement.
    """

    images: Tensor

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Draw ``n_samples`` distinct images.

        Raises:
            MetricMissingError: if there are fewer images.
        """
        if n_samples > len(self.images):
            raise MetricMissingError(
                f"there are {len(self.images):,} images to draw {n_samples:,} from"
            )
        return self.images[_permutation(len(self.images), seed)[:n_samples]]


@dataclass(frozen=True)
class MeanImage(CodelessControl):
    """The mean training image as every reconstruction and sample.

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
        """Return the mean image once per code."""
        return self.mean.expand(len(codes), -1, -1, -1)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Return the mean image ``n_samples`` times."""
        return self.mean.expand(n_samples, -1, -1, -1)


@dataclass(frozen=True)
class PixelNoise(CodelessControl):
    """Independent, uniformly distributed pixels as reconstructions and samples.

    Attributes:
        input_dim: shape (C, H, W) of an image.
        seed: seed of the reconstructions.
    """

    input_dim: tuple[int, int, int]
    seed: int

    def decode(self, codes: Tensor) -> Tensor:
        """Draw one noise image per code."""
        return self.sample(len(codes), self.seed)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Draw ``n_samples`` noise images."""
        generator = torch.Generator().manual_seed(seed)
        size = (n_samples, *self.input_dim)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


@dataclass(frozen=True)
class PrincipalComponents(Codec):
    """PCA as a model: its codes are coordinates, its prior a Gaussian fitted to the train codes.

    Attributes:
        train_images: uint8 (N, C, H, W) to which PCA is fitted.
        latent_dim: number of components L.
        seed: seed that selects images above `MAX_PCA_PIXELS` and starts the randomized solver
            above `MAX_EXACT_PIXELS`.
    """

    train_images: Tensor
    latent_dim: int
    seed: int

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (D,), components (L, D) and standard deviations (L,) of the codes."""
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
        """Return coordinates (N, L) of uint8 images (N, C, H, W)."""
        mean, components, _ = self.fitted
        codes = [
            (to_unit(batch.flatten(1)) - mean) @ components.T for batch in images.split(BATCH_SIZE)
        ]
        return torch.cat(codes).numpy()

    def decode(self, codes: Tensor) -> Tensor:
        """Return the uint8 images (N, C, H, W) at coordinates (N, L)."""
        mean, components, _ = self.fitted
        shape = self.train_images.shape[1:]
        images = [
            to_uint8((batch @ components + mean).unflatten(1, shape))
            for batch in codes.split(BATCH_SIZE)
        ]
        return torch.cat(images)

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Decode codes drawn from N(0, Σ), with Σ the diagonal covariance of the train codes."""
        generator = torch.Generator().manual_seed(seed)
        deviations = self.fitted[2]
        return self.decode(
            torch.randn(n_samples, self.latent_dim, generator=generator) * deviations
        )


@dataclass(frozen=True)
class HalvedOutputs(RunOutputs):
    """Outputs that compare one half of the test images, as samples, with the other half."""

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
        title: name in tables.
        latent_dim: L of ``pca``; None for controls without codes.
        provides: outputs that it offers to metrics.
        outputs: its outputs in the form of a run's, with a unique ``identity``.
    """

    name: str
    title: str
    latent_dim: int | None
    provides: frozenset[Need]
    outputs: RunOutputs

    @property
    def comparable(self) -> bool:
        """Whether its metrics use as many images as a model's, so that one table can show both."""
        return not isinstance(self.outputs, HalvedOutputs)

    def applicable_metrics(self, metrics: Iterable[str]) -> list[str]:
        """Select, by registered names, the metrics whose needs the control provides."""
        return [name for name in metrics if self.provides.issuperset(METRICS[name].needs)]

    def score(self, metrics: Iterable[str]) -> dict[str, MetricValue]:
        """Compute the applicable ones of the metrics, by registered names."""
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
    """Yield the controls of a dataset; PCA once per latent dim.

    Args:
        data: images and labels as the models get them.
        dataset: registered name of the dataset.
        latent_dims: latent dims of the models.
        device: device on which a metric may compute.
        weights: as in `hgmvae_bench.evaluation.outputs.RunOutputs`.
        cache: as in `hgmvae_bench.evaluation.outputs.RunOutputs`.
    """
    noise_seed = derive_seed(_identity("pixel-noise", data), "reconstructions")
    pca_seed = derive_seed(_identity("pca", data), "fit")
    samples: frozenset[Need] = frozenset({"samples", "labels"})
    images: frozenset[Need] = samples | {"reconstructions"}
    with_codes: frozenset[Need] = images | {"codes", "factors"}

    def control(
        name: str,
        title: str,
        provides: frozenset[Need],
        codec: Codec,
        latent_dim: int | None = None,
        outputs_class: type[RunOutputs] = RunOutputs,
    ) -> Control:
        identity = _identity(name if latent_dim is None else f"{name} L{latent_dim}", data)
        outputs = outputs_class(codec, data, dataset, identity, device, weights, cache)
        return Control(name, title, latent_dim, provides, outputs)

    test_images = RealImages(data.test_images)
    yield control(
        "real-halves", "Real (two halves)", samples, test_images, outputs_class=HalvedOutputs
    )
    train_images = RealImages(data.train_images)
    yield control("real-train", "Real (training images)", samples, train_images)
    yield control("mean-image", "Mean image", images, MeanImage(data.train_images))
    yield control("pixel-noise", "Pixel noise", images, PixelNoise(data.input_dim, noise_seed))
    for latent_dim in latent_dims:
        codec = PrincipalComponents(data.train_images, latent_dim, pca_seed)
        yield control("pca", "PCA", with_codes, codec, latent_dim)


def _identity(name: str, data: ImageData) -> str:
    return f"control {name} {data.digest}"


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
