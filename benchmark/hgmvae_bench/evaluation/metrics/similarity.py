"""Structural similarity (SSIM, MS-SSIM) of the test images and their reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hgmvae_bench.plugins.protocols import Outputs

Enlargement = Literal["nearest", "bilinear"]

# A batch's intermediate results fit into a CPU's cache.
BATCH_SIZE = 32
# Rows per block of a banded matrix: larger blocks multiply more zeros, smaller ones run slower.
BLOCK = 24
WINDOW = 11
SIGMA = 1.5
# (K · 255)² with K = 0.01 and 0.03, which keep SSIM's quotients finite on flat images.
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# pytorch-msssim halves an image four times and requires sides above (WINDOW - 1) · 2⁴ = 160 px.
MS_SSIM_SIDE = 161


def upsampling_factor(side: int) -> int:
    """Return the smallest integer factor that enlarges ``side`` px to at least 161 px."""
    return -(-MS_SSIM_SIDE // side)


def ssim(originals: Tensor, images: Tensor) -> Tensor:
    """Compute SSIM (B,) of images (B, C, H, W) in [0, 255]: 11×11 Gaussian window, σ = 1.5."""
    from pytorch_msssim import ssim as pytorch_ssim

    value: Tensor = pytorch_ssim(originals, images, data_range=255, size_average=False)
    return value


def ms_ssim(originals: Tensor, images: Tensor) -> Tensor:
    """Compute MS-SSIM (B,) of images (B, C, H, W) in [0, 255].

    Images with a side below 161 px are enlarged by pixel repetition.
    """
    return repeated_ms_ssim(originals, images, upsampling_factor(min(originals.shape[2:])))


def ms_ssim_bilinear(originals: Tensor, images: Tensor) -> Tensor:
    """Compute MS-SSIM (B,) of images (B, C, H, W) in [0, 255].

    Images with a side below 161 px are enlarged bilinearly, with pixel centres aligned as in
    ``interpolate(align_corners=False)``.
    """
    from torch.nn.functional import interpolate

    factor = upsampling_factor(min(originals.shape[2:]))
    if factor == 1:
        return ms_ssim(originals, images)

    def enlarge(batch: Tensor) -> Tensor:
        return interpolate(batch, scale_factor=factor, mode="bilinear", align_corners=False)

    return repeated_ms_ssim(enlarge(originals), enlarge(images), factor=1)


class BandedMatrix(NamedTuple):
    """A matrix (h, H) whose non-zero elements lie close to its diagonal.

    Attributes:
        matrix: the matrix.
        blocks: blocks of its rows (h', H') without the columns that are zero in the whole block,
            each with the index of its first column.
    """

    matrix: Tensor
    blocks: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, matrix: Tensor, device: torch.device) -> BandedMatrix:
        """Split ``matrix`` into blocks on ``device``."""
        blocks = []
        for rows in matrix.split(BLOCK):
            filled = rows.any(dim=0).nonzero()
            first, last = int(filled.min()), int(filled.max())
            blocks.append((first, rows[:, first : last + 1].to(device)))
        return cls(matrix.to(device), tuple(blocks))

    def __matmul__(self, columns: Tensor) -> Tensor:
        """Multiply by ``columns`` (H, N), leaving out most products with zero; (h, N)."""
        import torch

        product = columns.new_empty(len(self.matrix), columns.shape[1])
        parts = product.split(BLOCK)
        for part, (first, block) in zip(parts, self.blocks, strict=True):
            torch.mm(block, columns[first : first + block.shape[1]], out=part)
        return product


class Scale(NamedTuple):
    """One of MS-SSIM's five scales along one side of an image.

    Attributes:
        blur: matrix that enlarges the side and blurs it with the Gaussian window.
        halve: matrix that reduces the side to the next scale; None if the factor is even, so that
            the next scale is the same side enlarged by half the factor.
    """

    blur: BandedMatrix
    halve: BandedMatrix | None


@lru_cache(maxsize=16)
def build_scales(side: int, factor: int, device: torch.device) -> tuple[Scale, ...]:
    """Build the scales of a side of ``side`` px that pixel repetition enlarges by ``factor``."""
    import torch

    offsets = torch.arange(WINDOW) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    scales = []
    for _ in SCALE_WEIGHTS:
        enlarge = torch.eye(side).repeat_interleave(factor, dim=0)
        # Row i of the blur is the window at position i, without padding.
        blur = torch.zeros(len(enlarge) - WINDOW + 1, len(enlarge))
        for offset, weight in enumerate(window):
            blur.diagonal(offset).fill_(weight)
        blurred = BandedMatrix.of(blur @ enlarge, device)
        if factor % 2 == 0:
            scales.append(Scale(blurred, None))
            factor //= 2
        else:
            # Pairs of pixels are averaged; an odd side is padded by one pixel at its start.
            padded = torch.nn.functional.pad(enlarge, (0, 0, len(enlarge) % 2, 0))
            halve = padded.unflatten(0, (-1, 2)).mean(dim=1)
            scales.append(Scale(blurred, BandedMatrix.of(halve, device)))
            side, factor = len(halve), 1
    return tuple(scales)


def repeated_ms_ssim(originals: Tensor, images: Tensor, factor: int) -> Tensor:
    """Compute MS-SSIM (B,) of images (B, C, H, W) in [0, 255] after pixel repetition.

    The result equals pytorch-msssim's on the enlarged images, which are never built: repeating and
    blurring pixels is a product with one small matrix per axis, and squares and products of
    repeated pixels are the repeated squares and products. At 32 px it is about ten times faster.

    Args:
        originals: images (B, C, H, W).
        images: images to compare with ``originals``, of the same shape.
        factor: repetitions of each pixel along each axis; 1 leaves the images as they are.
    """
    import torch

    n_images, channels, height, width = originals.shape

    # With rows first, a matrix product acts on one axis of all images at once.
    x = originals.permute(2, 0, 1, 3).flatten(1, 2)
    y = images.permute(2, 0, 1, 3).flatten(1, 2)
    value = torch.ones(n_images * channels, device=originals.device)
    rows = build_scales(height, factor, originals.device)
    columns = build_scales(width, factor, originals.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        (blur_rows, halve_rows), (blur_columns, halve_columns) = rows[scale], columns[scale]
        fields = torch.cat([x, y, 2 * x * y + C2, x.square() + y.square() + C2], dim=1)
        mean_x, mean_y, covariance, variance = along_both(blur_rows, fields, blur_columns).chunk(
            4, dim=1
        )
        # In place, since these are the largest tensors.
        covariance = covariance.addcmul(mean_x, mean_y, value=-2)
        variance = variance.addcmul(mean_x, mean_x, value=-1).addcmul_(mean_y, mean_y, value=-1)
        similarity = covariance.div_(variance)
        if scale == len(SCALE_WEIGHTS) - 1:
            luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
            similarity = similarity * luminance
        value *= similarity.mean(dim=(0, 2)).relu() ** weight
        if halve_rows is not None and halve_columns is not None:
            x = along_both(halve_rows, x, halve_columns)
            y = along_both(halve_rows, y, halve_columns)
    return value.reshape(n_images, channels).mean(dim=1)


def along_both(rows: BandedMatrix, images: Tensor, columns: BandedMatrix) -> Tensor:
    """Multiply images (H, N, W) by ``rows`` (h, H) and ``columns`` (w, W); (h, N, w)."""
    result = images @ columns.matrix.T
    return (rows @ result.flatten(1)).reshape(-1, *result.shape[1:])


@dataclass(frozen=True)
class SimilarityMetric:
    """Mean similarity of the test images and their reconstructions.

    Attributes:
        similarity: function of originals and images (B, C, H, W) in [0, 255] with values (B,).
        min_side: minimum side of the images, in px.
        enlargement: method that enlarges small images; None if images keep their size.
    """

    title: str
    reference: str
    similarity: Callable[[Tensor, Tensor], Tensor]
    range: tuple[float, float]
    min_side: int = 1
    enlargement: Enlargement | None = None
    direction: Direction = "higher"
    needs: tuple[Need, ...] = ("reconstructions",)
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Return the mean over the test images.

        Raises:
            MetricMissingError: if the images are too small.
        """
        import torch

        from hgmvae_bench.utils.threads import parallel_map

        side = min(outputs.test_images.shape[2:])
        if side < self.min_side:
            raise MetricMissingError(f"{self.title} needs sides of {self.min_side} px, not {side}")

        def values(images: tuple[Tensor, Tensor]) -> Tensor:
            return self.similarity(*(x.to(outputs.device, torch.float32) for x in images))

        batches = zip(
            outputs.test_images.split(BATCH_SIZE),
            outputs.reconstructions.split(BATCH_SIZE),
            strict=True,
        )
        return float(torch.cat(parallel_map(values, batches)).double().mean())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, and how they were enlarged."""
        fingerprint: dict[str, str | int | float] = {
            "split": "test",
            "n_images": len(outputs.test_images),
        }
        if self.enlargement is not None:
            factor = upsampling_factor(min(outputs.test_images.shape[2:]))
            fingerprint["resize"] = f"{self.enlargement} ×{factor}"
        return fingerprint


SSIM = SimilarityMetric(
    "SSIM", "Wang et al. 2004; pytorch-msssim", ssim, range=(-1, 1), min_side=WINDOW
)
MS_SSIM = SimilarityMetric(
    "MS-SSIM",
    "Wang, Simoncelli & Bovik 2003; as pytorch-msssim",
    ms_ssim,
    range=(0, 1),
    enlargement="nearest",
)
MS_SSIM_BILINEAR = SimilarityMetric(
    "MS-SSIM (bilinear)",
    "Wang, Simoncelli & Bovik 2003; as pytorch-msssim",
    ms_ssim_bilinear,
    range=(0, 1),
    enlargement="bilinear",
    cost="expensive",
)
