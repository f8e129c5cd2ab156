"""Stripes: noisy stripes in four directions, generated when loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hgmvae_bench.data import ImageData
from hgmvae_bench.plugins.protocols import ReconstructionLoss

DIRECTIONS = {"horizontal": (0, 1), "vertical": (1, 0), "falling": (1, 1), "rising": (1, -1)}
PERIOD = 8  # pixels at 32×32
TRAIN, TEST = 256, 64


@dataclass(frozen=True)
class Stripes:
    title: str = "Stripes"
    reference: str = "made up for this example"
    image_size: int = 32
    channels: int = 1
    reconstruction_loss: ReconstructionLoss = "mse"

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Make the images; ``root`` is not used, and random numbers are its own."""
        import numpy as np
        import torch

        generator = np.random.default_rng(0)
        labels = np.arange(TRAIN + TEST) % len(DIRECTIONS)
        row, column = np.mgrid[:image_size, :image_size] * (32 / image_size)
        dx, dy = np.array(list(DIRECTIONS.values())).T[:, labels, None, None]
        phase = generator.uniform(0, PERIOD, size=(len(labels), 1, 1))
        waves = np.sin(2 * np.pi * (dx * column + dy * row + phase) / PERIOD)
        noise = generator.normal(0, 0.1, size=waves.shape)
        pixels = (255 * (0.5 + 0.4 * waves + noise).clip(0, 1)).astype(np.uint8)
        images, classes = torch.from_numpy(pixels)[:, None], torch.from_numpy(labels)
        return ImageData(
            train_images=images[:TRAIN],
            train_labels=classes[:TRAIN],
            test_images=images[TRAIN:],
            test_labels=classes[TRAIN:],
            class_names=tuple(DIRECTIONS),
        )


STRIPES = Stripes()
