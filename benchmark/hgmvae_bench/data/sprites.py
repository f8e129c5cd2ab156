"""Sprites: white shapes on black, rendered when loaded, one for every combination of factors.

The dataset serves the same purpose as dSprites (Matthey et al. 2017) without a download. It has no
shape with a rotational symmetry, so that every combination of factors gives a different image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.source import Progress
from hgmvae_bench.data.splits import shuffled_indices
from hgmvae_bench.plugins.protocols import ReconstructionLoss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Plane = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]

SIDE = 32
SHAPES = ("heart", "triangle", "ell")
RADII = (4, 5, 6, 7)
"""Radius in pixels (at 32×32) of the circle around a shape, by scale."""
N_ORIENTATIONS = 12
N_POSITIONS = 16
FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (len(SHAPES), len(RADII), N_ORIENTATIONS, N_POSITIONS, N_POSITIONS)
N_IMAGES = math.prod(FACTOR_SIZES)
N_TEST = 4_096

PATCH = SIDE - N_POSITIONS + 1
"""Side in pixels (at 32×32) of the square around a shape, which is moved by whole pixels."""
SUBPIXELS = 8
"""Samples per pixel and axis; a grey level is the share of samples inside the shape."""


@dataclass(frozen=True)
class Sprites:
    """36,864 images: every combination of 3 shapes, 4 scales, 12 orientations and 16 × 16 places.

    ``shape`` is a heart, a triangle or an L. ``scale`` is a radius of 4, 5, 6 or 7 pixels.
    ``orientation`` is a multiple of 30°. ``x`` and ``y`` move the centre by one pixel per value,
    from 8.5 to 23.5. The classes are the shapes.

    There is no official split. Images are sorted by a hash of their number (`splits.shuffled`): the
    first 4,096 are the test split, the others are for training, in this order.
    """

    title: str = "Sprites"
    reference: str = "this suite, after Matthey, Higgins, Hassabis & Lerchner 2017, dSprites"
    image_size: int = SIDE
    channels: int = 1
    n_train_images: int = N_IMAGES - N_TEST
    n_test_images: int = N_TEST
    reconstruction_loss: ReconstructionLoss = "bce"

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Render the images; ``root`` is ignored.

        Raises:
            ValueError: if ``image_size`` is not a multiple of 32.
        """
        import numpy as np
        import torch

        from hgmvae_bench.plugins.factors import Factors

        if image_size < 1 or image_size % SIDE:
            raise ValueError(f"image_size {image_size} is not a multiple of {SIDE}")
        images = render(image_size).reshape(N_IMAGES, 1, image_size, image_size)
        values = np.stack(np.unravel_index(np.arange(N_IMAGES), FACTOR_SIZES), axis=1)
        factors = torch.from_numpy(values.astype(np.int64))
        order = shuffled_indices(N_IMAGES)
        test, train = order[:N_TEST], order[N_TEST:]
        return ImageData(
            train_images=torch.from_numpy(images[train]),
            train_labels=factors[train, 0],
            test_images=torch.from_numpy(images[test]),
            test_labels=factors[test, 0],
            class_names=SHAPES,
            factors=Factors(FACTOR_NAMES, FACTOR_SIZES, factors[train], factors[test]),
        )

    def fetch(self, root: Path, progress: Progress) -> None:
        """Do nothing: the images are rendered when they are loaded."""


def render(image_size: int) -> Pixels:
    """Render every combination of factors, uint8 (3, 4, 12, 16, 16, S, S), indexed by factor.

    The shape is rendered once per scale and orientation and then moved by whole pixels.

    Args:
        image_size: S, a multiple of 32.
    """
    import numpy as np

    unit = image_size // SIDE
    patches = _patches(unit)
    side = patches.shape[-1]
    images = np.zeros((*FACTOR_SIZES, image_size, image_size), dtype=np.uint8)
    for x in range(N_POSITIONS):
        for y in range(N_POSITIONS):
            top, left = y * unit, x * unit
            images[:, :, :, x, y, top : top + side, left : left + side] = patches
    return images


def _patches(unit: int) -> Pixels:
    """Shapes by scale and orientation, uint8 (3, 4, 12, P, P), at ``unit`` pixels per pixel."""
    import numpy as np

    side = PATCH * unit
    axis = ((np.arange(side * SUBPIXELS) + 0.5) / (SUBPIXELS * unit)) - PATCH / 2
    across, up = np.meshgrid(axis, -axis)
    patches = np.empty((*FACTOR_SIZES[:3], side, side), dtype=np.uint8)
    for orientation in range(N_ORIENTATIONS):
        angle = 2 * math.pi * orientation / N_ORIENTATIONS
        u = math.cos(angle) * across + math.sin(angle) * up
        v = math.cos(angle) * up - math.sin(angle) * across
        for scale, radius in enumerate(RADII):
            for shape, contains in enumerate((_heart, _triangle, _ell)):
                inside = contains(u / radius, v / radius)
                blocks = inside.reshape(side, SUBPIXELS, side, SUBPIXELS)
                share = blocks.mean(axis=(1, 3))
                patches[shape, scale, orientation] = np.floor(share * 255 + 0.5).astype(np.uint8)
    return patches


# Shapes in the unit circle: whether the point (u, v), v upwards, lies inside. The edges are placed
# so that no sample lies on one, where rounding errors, and with them the platform, would decide.


def _heart(u: Plane, v: Plane) -> Mask:
    a, b = 1.301 * u, 1.301 * v + 0.15
    inside: Mask = (a**2 + b**2 - 1) ** 3 <= a**2 * b**3
    return inside


def _triangle(u: Plane, v: Plane) -> Mask:
    # Corners (0, 0.997) and (±0.6, −0.803).
    inside: Mask = (v >= -0.803) & (3 * abs(u) <= 0.997 - v)
    return inside


def _ell(u: Plane, v: Plane) -> Mask:
    # Two bars, in −0.503 ≤ u ≤ 0.597 and −0.753 ≤ v ≤ 0.797.
    upright = (u >= -0.503) & (u <= 0.003) & (v >= -0.753) & (v <= 0.797)
    foot = (u >= -0.503) & (u <= 0.597) & (v >= -0.753) & (v <= -0.257)
    inside: Mask = upright | foot
    return inside


SPRITES = Sprites()
