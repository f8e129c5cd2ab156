"""Images and labels of a dataset, which dataset plug-ins return and metrics receive."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from hgmvae_bench.plugins.factors import Factors

Codes: TypeAlias = "npt.NDArray[np.float32]"
"""Codes (N, L) of N images."""

Labels: TypeAlias = "npt.NDArray[np.int64]"
"""Classes or clusters (N,) of N images."""

VALIDATION_SEED = 0
"""Seed of the validation images of a dataset without a validation split."""


@dataclass(frozen=True)
class ImageData:
    """A dataset in memory, split into training and test images.

    Attributes:
        train_images: uint8 (N, C, H, W).
        train_labels: int64 (N,), or None for a dataset without classes.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,), or None.
        class_names: a name for every label, in the order of the labels; empty without names.
        validation_images: uint8 (V, C, H, W), or None for a dataset without its own validation
            split. Only `with_validation_as_test` uses them.
        validation_labels: int64 (V,), or None.
        factors: factors of variation of the images, or None for a dataset without known factors.

    Raises:
        ValueError: if a shape or type differs from the above, or a label has no name.
    """

    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor | None
    class_names: tuple[str, ...] = ()
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        import torch

        splits = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        if self.validation_images is not None:
            splits["validation"] = (self.validation_images, self.validation_labels)
        for split, (images, labels) in splits.items():
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError(
                    f"{split} images are {images.dtype} {tuple(images.shape)}, "
                    "expected uint8 (N, C, H, W)"
                )
            if labels is not None and (labels.dtype != torch.int64 or len(labels) != len(images)):
                raise ValueError(
                    f"{split} labels are {labels.dtype} {tuple(labels.shape)}, "
                    f"expected int64 ({len(images)},)"
                )
            if self.class_names and labels is not None and len(labels):
                low, high, n_names = int(labels.min()), int(labels.max()), len(self.class_names)
                if low < 0 or high >= n_names:
                    raise ValueError(
                        f"{split} labels are {low} to {high}, expected 0 to {n_names - 1}: "
                        f"class_names has {n_names} names; name every label, or none"
                    )
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"train images are {tuple(self.train_images.shape[1:])} and {split} images "
                    f"{tuple(images.shape[1:])}; expected one shape"
                )
        if self.factors is not None:
            validation = self.validation_images
            self.factors.check_counts(
                len(self.train_images),
                len(self.test_images),
                None if validation is None else len(validation),
            )

    @property
    def input_dim(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every image, label and factor, which is part of the run keys.

        The cache of decoded images stores the digest, so that opening it reads no images.
        """
        sha = hashlib.sha256()
        for tensor in (
            self.train_images,
            self.train_labels,
            self.test_images,
            self.test_labels,
            self.validation_images,
            self.validation_labels,
        ):
            if tensor is not None:
                sha.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
                sha.update(tensor.contiguous().numpy().data)
        for part in () if self.factors is None else self.factors.digest_parts():
            sha.update(part)
        return sha.hexdigest()

    def first_train_images(self, count: int | None) -> ImageData:
        """Return the data with only the first ``count`` training images (None: all).

        Raises:
            ValueError: if there are fewer.
        """
        if count is None or count == len(self.train_images):
            return self
        if count > len(self.train_images):
            raise ValueError(
                f"train_images is {count}, but there are only {len(self.train_images)}"
            )
        labels, factors = self.train_labels, self.factors
        return replace(
            self,
            train_images=self.train_images[:count],
            train_labels=None if labels is None else labels[:count],
            factors=None if factors is None else replace(factors, train=factors.train[:count]),
        )

    def with_validation_as_test(self, count: int | None = None) -> ImageData:
        """Return the data with held-out images in place of the test images, for model selection.

        The result does not contain the test images. If the dataset has a validation split, its
        first ``count`` images are used and the training images stay the same. Otherwise ``count``
        training images are held out, drawn with a fixed seed and stratified by class; the others
        keep their order. The images depend on ``count`` only, not on a run's seed.

        Args:
            count: number of images. None: the whole validation split, or a tenth of the training
                images if there is none.

        Raises:
            ValueError: if there are fewer images, or more classes than ``count``.
        """
        if self.validation_images is None:
            return self._with_drawn_validation(count)
        return self._with_given_validation(self.validation_images, count)

    def _with_given_validation(self, held_out: Tensor, count: int | None) -> ImageData:
        """Test on the first ``count`` images (N, C, H, W) of the validation split."""
        labels = self.validation_labels
        if count is not None and not 0 < count <= len(held_out):
            raise ValueError(
                f"{count} validation images were requested, but the dataset's validation split "
                f"has {len(held_out)}"
            )
        factors = self.factors
        if factors is not None and factors.validation is not None:
            factors = replace(factors, test=factors.validation[:count], validation=None)
        return replace(
            self,
            test_images=held_out[:count],
            test_labels=None if labels is None else labels[:count],
            validation_images=None,
            validation_labels=None,
            factors=factors,
        )

    def _with_drawn_validation(self, count: int | None) -> ImageData:
        """Test on ``count`` training images, which are no longer trained on."""
        import torch
        from sklearn.model_selection import train_test_split

        n_images = len(self.train_images)
        count = n_images // 10 if count is None else count
        if not 0 < count < n_images:
            raise ValueError(
                f"{count} validation images were requested, but they are taken from {n_images} "
                "training images, of which some must remain"
            )
        kept, taken = train_test_split(
            torch.arange(n_images).numpy(),
            test_size=count,
            random_state=VALIDATION_SEED,
            stratify=self.train_labels,
        )
        kept.sort()
        taken.sort()
        labels, factors = self.train_labels, self.factors
        if factors is not None:
            factors = replace(factors, train=factors.train[kept], test=factors.train[taken])
        return replace(
            self,
            train_images=self.train_images[kept],
            train_labels=None if labels is None else labels[kept],
            test_images=self.train_images[taken],
            test_labels=None if labels is None else labels[taken],
            factors=factors,
        )
