"""CIFAR-10 as published, 32×32 in colour, in torchvision's layout.

The published Python archive contains pickles, which in general can run code when they are read. It
is used because torchvision has its address and checksums, and because most users have this copy. A
restricted unpickler builds only containers, strings, numbers and NumPy arrays. It refuses any other
name before it is looked up.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.download import fetch_file, refuse_to_replace, unpack
from hgmvae_bench.data.source import (
    DataFileError,
    DatasetReport,
    Progress,
    Source,
    check_md5,
    data_error,
    error_reason,
    warn_if_incomplete,
)
from hgmvae_bench.plugins.protocols import ReconstructionLoss

if TYPE_CHECKING:
    from torch import Tensor


SIDE, CHANNELS, N_CLASSES = 32, 3, 10
N_TRAIN, N_TEST = 50_000, 10_000
CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

SOURCE = Source(
    name="cifar10",
    address="https://www.cs.toronto.edu/~kriz/cifar.html",
    layout="cifar-10-batches-py/{data_batch_1,…,data_batch_5,test_batch}",
    size="170 MB",
)


@dataclass(frozen=True)
class Cifar10:
    """50,000 training and 10,000 test images of 32×32 in colour, 10 classes.

    The files contain arrays, so that nothing is decoded or cached.
    """

    title: str = "CIFAR-10"
    reference: str = "Krizhevsky 2009, Learning multiple layers of features from tiny images"
    image_size: int = SIDE
    channels: int = CHANNELS
    n_train_images: int = N_TRAIN
    n_test_images: int = N_TEST
    reconstruction_loss: ReconstructionLoss = "mse"
    source: Source = SOURCE

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read ``root/cifar-10-batches-py``, the official split.

        Raises:
            hgmvae_bench.data.DataError: if a file is missing, damaged or has more than arrays.
            ValueError: if ``image_size`` is not 32.
        """
        import torch
        from torchvision import datasets

        if image_size != SIDE:
            raise ValueError(f"image_size is {image_size}, but {self.title} is {SIDE}×{SIDE}")
        published = datasets.CIFAR10
        folder = root / published.base_folder
        try:
            train = [read_batch(folder / name) for name, _ in published.train_list]
            test = [read_batch(folder / name) for name, _ in published.test_list]
        except DataFileError as error:
            raise data_error(self.title, error.file, self.source, root) from error
        data = ImageData(
            train_images=torch.cat([images for images, _ in train]),
            train_labels=torch.cat([labels for _, labels in train]),
            test_images=torch.cat([images for images, _ in test]),
            test_labels=torch.cat([labels for _, labels in test]),
            class_names=CLASS_NAMES,
        )
        for images, split, published_count in (
            (data.train_images, "training", N_TRAIN),
            (data.test_images, "test", N_TEST),
        ):
            warn_if_incomplete(self.title, folder, len(images), published_count, f"{split} images")
        return data

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download torchvision's archive and unpack it, if the data is incomplete.

        Raises:
            hgmvae_bench.data.DataError: if that fails.
        """
        from torchvision import datasets

        if self.check(root, progress).complete:
            return
        published = datasets.CIFAR10
        refuse_to_replace(root / published.base_folder)
        archive = root / published.filename
        downloaded = fetch_file(
            [published.url],
            archive,
            md5=published.tgz_md5,
            progress=progress,
            by_hand=f"without network, put {archive.name} ({self.source.size}) into {root} "
            "and fetch again, which unpacks it",
        )
        unpack(archive, root, published.base_folder, progress)
        if downloaded:
            archive.unlink()

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Compare the MD5 of every file with the published one."""
        from torchvision import datasets

        published = datasets.CIFAR10
        folder = root / published.base_folder
        files = tuple(
            check_md5(folder / name, md5)
            for name, md5 in [*published.train_list, *published.test_list]
        )
        return DatasetReport(self.title, files, self.source.advice(root))


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file.

    Raises:
        DataFileError: if the file is missing or damaged, or contains more than arrays.
    """
    import numpy as np
    import torch

    try:
        with path.open("rb") as file:
            batch = ArrayUnpickler(file).load()
    except FileNotFoundError as error:
        raise DataFileError(path, "missing", "the file does not exist") from error
    # A damaged pickle raises EOFError, KeyError, struct.error, …
    except Exception as error:
        raise DataFileError(path, "damaged", f"cannot be read ({error_reason(error)})") from error
    if not isinstance(batch, Mapping) or not {"data", "labels"} <= batch.keys():
        raise DataFileError(path, "damaged", "has no mapping with 'data' and 'labels'")
    pixels = batch["data"]
    row = CHANNELS * SIDE * SIDE
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (row,)
        or pixels.ndim != 2
    ):
        raise DataFileError(path, "damaged", f"its 'data' is not a uint8 array of shape (N, {row})")
    labels = batch["labels"]
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and 0 <= label < N_CLASSES for label in labels)
    ):
        detail = f"its 'labels' are not {len(pixels)} integers below {N_CLASSES}"
        raise DataFileError(path, "damaged", detail)
    images = torch.from_numpy(pixels.reshape(-1, CHANNELS, SIDE, SIDE).copy())
    return images, torch.tensor(labels, dtype=torch.int64)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds only containers, strings, numbers and NumPy arrays.

    Python 2 wrote the published files, so their strings are read as Latin-1.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the callables with which NumPy pickles arrays.

        Raises:
            pickle.UnpicklingError: if the name is any other.
        """
        import numpy as np

        # The function that rebuilds an array is in a private module of NumPy.
        rebuild = np.empty(0, np.uint8).__reduce__()[0]
        allowed = {
            # NumPy's inner package was called `core` before NumPy 2.
            "numpy.core.multiarray._reconstruct": rebuild,
            "numpy._core.multiarray._reconstruct": rebuild,
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            # How Python 3 pickles bytes for Python 2.
            "_codecs.encode": _latin1_bytes,
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, but only arrays are allowed"
            )
        return allowed[f"{module}.{name}"]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it refers to the encoding {encoding}")
    return text.encode("latin-1")


CIFAR10 = Cifar10()
