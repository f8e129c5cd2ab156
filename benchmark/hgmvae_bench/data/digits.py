"""Handwritten digits: 1,797 real images that are part of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.source import Progress
from hgmvae_bench.plugins.protocols import ReconstructionLoss

SIDE = 8
TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """8×8 images with 17 grey levels, enlarged by repeating pixels.

    There is no official split. A fifth of each class (360 images in total), drawn with a fixed
    seed, is the test split.
    """

    title: str = "Digits"
    reference: str = "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI)"
    image_size: int = 32
    channels: int = 1
    n_train_images: int = 1_437
    n_test_images: int = 360
    reconstruction_loss: ReconstructionLoss = "bce"

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the digits from scikit-learn; ``root`` is ignored.

        Raises:
            ValueError: if ``image_size`` is not a multiple of 8.
        """
        import numpy as np
        import torch
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        if image_size < 1 or image_size % SIDE:
            raise ValueError(f"image_size {image_size} is not a multiple of {SIDE}")
        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        images = torch.from_numpy(pixels)
        for axis in (2, 3):
            images = images.repeat_interleave(image_size // SIDE, dim=axis)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        train, test = train_test_split(
            np.arange(len(labels)),
            test_size=TEST_FRACTION,
            random_state=SPLIT_SEED,
            stratify=digits.target,
        )
        return ImageData(
            train_images=images[train],
            train_labels=labels[train],
            test_images=images[test],
            test_labels=labels[test],
            class_names=tuple(str(name) for name in digits.target_names),
        )

    def fetch(self, root: Path, progress: Progress) -> None:
        """Do nothing: the images are part of scikit-learn."""


DIGITS = Digits()
