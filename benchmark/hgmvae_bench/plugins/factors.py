"""Factors of variation of a dataset, which metrics of disentanglement compare with the codes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Values of the factors of variation of every image.

    A factor takes ``size`` values, which are numbered from 0 in their natural order.

    Attributes:
        names: names of the F factors.
        sizes: number of values of each factor, at least 2.
        train: value numbers int64 (N, F) of the training images.
        test: value numbers int64 (M, F) of the test images.
        validation: value numbers int64 (V, F), or None for a dataset without a validation split.

    Raises:
        ValueError: if a shape, type or value differs from the above.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    train: Tensor
    test: Tensor
    validation: Tensor | None = None

    def __post_init__(self) -> None:
        import torch

        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"factors have the names {self.names} and sizes {self.sizes}, "
                "expected one size per name and no name twice"
            )
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"factors have the sizes {self.sizes}, expected at least 2 each")
        n_factors = len(self.sizes)
        for split in ("train", "test", "validation"):
            values: Tensor | None = getattr(self, split)
            if values is None:
                continue
            if (
                values.dtype != torch.int64
                or values.ndim != 2
                or values.shape[1] != len(self.sizes)
            ):
                raise ValueError(
                    f"{split} factors are {values.dtype} {tuple(values.shape)}, "
                    f"expected int64 (N, {n_factors})"
                )
            if len(values) and (
                values.min() < 0 or (values.amax(dim=0) >= torch.tensor(self.sizes)).any()
            ):
                raise ValueError(
                    f"{split} factors have values outside their sizes {self.sizes}, "
                    "expected numbers from 0 to size − 1"
                )

    def check_counts(self, n_train: int, n_test: int, n_validation: int | None) -> None:
        """Check that every image has its factors.

        Raises:
            ValueError: if a split has another number of images, or is missing.
        """
        found = tuple(
            None if values is None else len(values)
            for values in (self.train, self.test, self.validation)
        )
        if found != (n_train, n_test, n_validation):
            raise ValueError(
                f"factors are of {found} training, test and validation images, "
                f"expected {(n_train, n_test, n_validation)}"
            )

    def digest_parts(self) -> Iterable[bytes]:
        """Yield the content as bytes, for the digest of the dataset."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                yield f"factors {field.name} {value}\n".encode()
            elif value is not None:
                yield f"factors {field.name} {tuple(value.shape)}\n".encode()
                yield hashlib.sha256(value.contiguous().numpy().data).digest()
