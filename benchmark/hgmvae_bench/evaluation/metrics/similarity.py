"""Structural similarity of the test images and their reconstructions."""

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

# What is computed at a time stays in a CPU's cache, which matters more than the size itself.
BATCH_SIZE = 32
# Rows of a blur that are multiplied together: what zeros cost against what products cost.
BLOCK = 24
WINDOW = 11
SIGMA = 1.5
# (K · 255)² with K = 0.01 and 0.03: keep the quotients of SSIM finite on flat images.
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# pytorch-msssim halves the image four times and wants the smallest above half of the window's
# (11 - 1) * 2**4 = 160 px.
MS_SSIM_SIDE = 161


def upsampling_factor(side: int) -> int:
    """The smallest integer factor that brings ``side`` px to the 161 px that MS-SSIM needs."""
    return -(-MS_SSIM_SIDE // side)


def ssim(originals: Tensor, images: Tensor) -> Tensor:
    """SSIM (B,) of images (B, C, H, W) in [0, 255]: 11×11 Gaussian window, σ = 1.5."""
    from pytorch_msssim import ssim as pytorch_ssim

    value: Tensor = pytorch_ssim(originals, images, data_range=255, size_average=False)
    return value


def ms_ssim(originals: Tensor, images: Tensor) -> Tensor:
    """MS-SSIM (B,) of images (B, C, H, W) in [0, 255], enlarged by pixel repetition if need be."""
    from pytorch_msssim import ms_ssim as pytorch_ms_ssim

    factor = upsampling_factor(min(originals.shape[2:]))
    if factor > 1:
        return enlarged_ms_ssim(originals, images, factor)
    value: Tensor = pytorch_ms_ssim(originals, images, data_range=255, size_average=False)
    return value


class BandedMatrix(NamedTuple):
    """A matrix (h, H) that is zero away from its diagonal.

    Attributes:
        whole: the matrix.
        blocks: groups of its rows (h', H'), without the columns that are all zero, each with the
            index of its first column.
    """

    whole: Tensor
    blocks: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, matrix: Tensor, device: torch.device) -> BandedMatrix:
        """``matrix``, on ``device``."""
        blocks = []
        for rows in matrix.split(BLOCK):
            filled = rows.any(dim=0).nonzero()
            first, last = int(filled.min()), int(filled.max())
            blocks.append((first, rows[:, first : last + 1].to(device)))
        return cls(matrix.to(device), tuple(blocks))

    def __matmul__(self, columns: Tensor) -> Tensor:
        """The product (h, N) with ``columns`` (H, N), of which most would be additions of zero."""
        import torch

        product = columns.new_empty(len(self.whole), columns.shape[1])
        parts = product.split(BLOCK)
        for part, (first, block) in zip(parts, self.blocks, strict=True):
            torch.mm(block, columns[first : first + block.shape[1]], out=part)
        return product


class Scale(NamedTuple):
    """One of MS-SSIM's five scales of a side of the image, as matrices to multiply it with.

    Attributes:
        blur: enlarges and blurs with the Gaussian window.
        halve: brings the side to the next scale; None where its pixels still repeat evenly, so
            that the next scale is the same side enlarged half as much.
    """

    blur: BandedMatrix
    halve: BandedMatrix | None


@lru_cache(maxsize=16)
def build_scales(side: int, factor: int, device: torch.device) -> tuple[Scale, ...]:
    """The scales of a side of ``side`` px that is enlarged by ``factor``."""
    import torch

    steps = torch.arange(WINDOW) - WINDOW // 2
    window = torch.exp(-(steps**2) / (2 * SIGMA**2))
    window /= window.sum()
    found = []
    for _ in SCALE_WEIGHTS:
        enlarge = torch.eye(side).repeat_interleave(factor, dim=0)
        # Row i of the blur is the window at position i, without padding.
        blur = torch.zeros(len(enlarge) - WINDOW + 1, len(enlarge))
        for step, weight in enumerate(window):
            blur.diagonal(step).fill_(weight)
        if factor % 2 == 0:
            found.append(Scale(BandedMatrix.of(blur @ enlarge, device), None))
            factor //= 2
        else:
            # Pairs of pixels are averaged; an odd side starts with a pixel of padding.
            padded = torch.nn.functional.pad(enlarge, (0, 0, len(enlarge) % 2, 0))
            halve = padded.unflatten(0, (-1, 2)).mean(dim=1)
            found.append(
                Scale(BandedMatrix.of(blur @ enlarge, device), BandedMatrix.of(halve, device))
            )
            side, factor = len(halve), 1
    return tuple(found)


def enlarged_ms_ssim(originals: Tensor, images: Tensor, factor: int) -> Tensor:
    """MS-SSIM (B,) of images (B, C, H, W) in [0, 255] that are enlarged by pixel repetition.

    What pytorch-msssim gives for the enlarged images, without ever making them: repeating pixels
    and blurring them is one small matrix along each axis, and squares and products of repeated
    pixels are the repeated squares and products. Some ten times faster at 32 px.
    """
    import torch

    n_images, channels, height, width = originals.shape

    # Rows come first, so that a matrix product acts on either axis of all images at once.
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
        # In place, since these are the largest tensors by far.
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
    """Images (H, N, W) multiplied with ``rows`` (h, H) and ``columns`` (w, W): (h, N, w)."""
    result = images @ columns.whole.T
    return (rows @ result.flatten(1)).reshape(-1, *result.shape[1:])


@dataclass(frozen=True)
class SimilarityMetric:
    """Mean similarity of the test images and their reconstructions.

    Attributes:
        similarity: maps originals and images (B, C, H, W) in [0, 255] to values (B,).
        min_side: of the images that it can take, in px.
        enlarges: whether images are enlarged first.
    """

    title: str
    reference: str
    similarity: Callable[[Tensor, Tensor], Tensor]
    range: tuple[float, float]
    min_side: int
    enlarges: bool
    direction: Direction = "higher"
    needs: tuple[Need, ...] = ("reconstructions",)
    cost: Literal["cheap", "expensive"] = "cheap"

    def compute(self, outputs: Outputs) -> float:
        """Mean over the test images.

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
        """Split, number of images, and how they were enlarged."""
        fingerprint: dict[str, str | int | float] = {
            "split": "test",
            "n_images": len(outputs.test_images),
        }
        if self.enlarges:
            side = min(outputs.test_images.shape[2:])
            fingerprint["resize"] = f"nearest ×{upsampling_factor(side)}"
        return fingerprint


SSIM = SimilarityMetric(
    "SSIM",
    "Wang et al. 2004; pytorch-msssim",
    ssim,
    range=(-1, 1),
    min_side=WINDOW,
    enlarges=False,
)
MS_SSIM = SimilarityMetric(
    "MS-SSIM",
    "Wang, Simoncelli & Bovik 2003; as pytorch-msssim",
    ms_ssim,
    range=(0, 1),
    min_side=1,
    enlarges=True,
)
