"""Datasets with factors of variation that are published as one file of 64×64 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.download import fetch_file
from hgmvae_bench.data.source import (
    DatasetReport,
    FileStatus,
    Progress,
    Source,
    check_md5,
    data_error,
    error_reason,
    warn_if_incomplete,
)
from hgmvae_bench.data.splits import share, shuffled_indices
from hgmvae_bench.plugins.protocols import ReconstructionLoss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Integers = npt.NDArray[np.int64]

SIDE = 64
BLOCK = 4096
"""Images that are read at a time: 17 MB in grey, 50 MB in colour."""
N_TEST = 10_000


class FileContents(NamedTuple):
    """Contents of a file.

    Attributes:
        factors: value numbers int64 (N, F).
        blocks: all images in the order of ``factors``, in blocks uint8 (B, C, 64, 64).
    """

    factors: Integers
    blocks: Iterator[Pixels]


@dataclass(frozen=True)
class FactoredFile:
    """A dataset of one file, which has the factors of every image.

    The published datasets have no official split. Images are sorted by a hash of their number
    (`splits.shuffled`): the first 10,000 are the test split, the others are for training, in this
    order. A file with fewer images has a proportionally smaller test split.

    Attributes:
        file: path of the file below the data folder.
        url, md5: address and MD5 of the published file.
        factor_names, factor_sizes: the F factors.
        class_factor: index of the factor whose values are the classes.
        class_names: names of its values.
        open_file: opens a file.
        read_errors: what ``open_file`` raises if the file is damaged, also while the blocks are
            read.
    """

    title: str
    reference: str
    channels: int
    reconstruction_loss: ReconstructionLoss
    n_train_images: int
    source: Source
    file: str
    url: str
    md5: str
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    class_factor: int
    class_names: tuple[str, ...]
    open_file: Callable[[Path], AbstractContextManager[FileContents]]
    read_errors: tuple[type[Exception], ...]
    image_size: int = SIDE
    n_test_images: int = N_TEST

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the file into memory, where it takes one byte per pixel and channel.

        Raises:
            hgmvae_bench.data.DataError: if the file is missing or damaged.
            ValueError: if ``image_size`` is not 64.
        """
        if image_size != SIDE:
            raise ValueError(f"image_size is {image_size}, but {self.title} is {SIDE}×{SIDE}")
        path = root / self.file
        if not path.exists():
            status = FileStatus(path, "missing", "the file does not exist")
            raise data_error(self.title, status, self.source, root)
        try:
            with self.open_file(path) as contents:
                data = self._split(contents)
        except DataError:  # The format cannot be read here.
            raise
        except self.read_errors as error:
            status = FileStatus(path, "damaged", f"damaged ({error_reason(error)})")
            raise data_error(self.title, status, self.source, root) from error
        count = len(data.train_images) + len(data.test_images)
        warn_if_incomplete(self.title, path, count, self._count)
        return data

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download the published file if it is missing, and verify its MD5.

        Raises:
            hgmvae_bench.data.DataError: if that fails.
        """
        path = root / self.file
        fetch_file(
            [self.url],
            path,
            md5=self.md5,
            progress=progress,
            by_hand=f"without network, put {path.name} ({self.source.size}, {self.source.address}) "
            f"into {path.parent}",
        )

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Compare the MD5 of the file with the published one."""
        status = check_md5(root / self.file, self.md5)
        return DatasetReport(self.title, (status,), self.source.advice(root))

    @property
    def _count(self) -> int:
        return self.n_train_images + self.n_test_images

    def _split(self, contents: FileContents) -> ImageData:
        """Put each block of images where it belongs, so that no image is in memory twice."""
        import numpy as np
        import torch

        from hgmvae_bench.plugins.factors import Factors

        count = len(contents.factors)
        order = np.array(shuffled_indices(count))
        position = np.empty(count, dtype=np.int64)
        position[order] = np.arange(count)
        images = torch.empty((count, self.channels, SIDE, SIDE), dtype=torch.uint8)
        start = 0
        for block in contents.blocks:
            images.numpy()[position[start : start + len(block)]] = block
            start += len(block)
        factors = torch.from_numpy(contents.factors[order])
        classes = factors[:, self.class_factor].contiguous()
        n_test = share(count, self.n_test_images / self._count)
        return ImageData(
            train_images=images[n_test:],
            train_labels=classes[n_test:],
            test_images=images[:n_test],
            test_labels=classes[:n_test],
            class_names=self.class_names,
            factors=Factors(
                self.factor_names, self.factor_sizes, factors[n_test:], factors[:n_test]
            ),
        )
