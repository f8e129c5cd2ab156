"""MNIST and Fashion-MNIST in torchvision's on-disk layout, zero-padded to 32×32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.download import fetch_file, gunzip
from hgmvae_bench.data.pixels import pad_to
from hgmvae_bench.data.source import (
    DataFileError,
    DatasetReport,
    FileStatus,
    Progress,
    Source,
    data_error,
    error_reason,
)
from hgmvae_bench.plugins.protocols import ReconstructionLoss

if TYPE_CHECKING:
    from torch import Tensor


N_TRAIN, N_TEST, SIDE, N_CLASSES = 60_000, 10_000, 28, 10
SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (N_TRAIN, SIDE, SIDE),
    "train-labels-idx1-ubyte": (N_TRAIN,),
    "t10k-images-idx3-ubyte": (N_TEST, SIDE, SIDE),
    "t10k-labels-idx1-ubyte": (N_TEST,),
}


@dataclass(frozen=True)
class MnistLike:
    """A dataset of the MNIST family: 60,000 training and 10,000 test images of 28×28, 10 classes.

    The files contain arrays, so that nothing is decoded or cached.

    Attributes:
        torchvision_class: class of ``torchvision.datasets`` with the addresses, checksums and class
            names; also the name of the folder.
        source: origin of the dataset.
    """

    title: str
    reference: str
    torchvision_class: str
    source: Source
    reconstruction_loss: ReconstructionLoss
    image_size: int = 32
    channels: int = 1
    n_train_images: int = N_TRAIN
    n_test_images: int = N_TEST

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read ``root/<torchvision_class>/raw/*-ubyte``, the official split.

        Raises:
            hgmvae_bench.data.DataError: if a file is missing, truncated or of another shape.
            ValueError: if images of 28×28 cannot be padded evenly to ``image_size``.
        """
        from torchvision import datasets

        try:
            train_images, train_labels, test_images, test_labels = (
                read_idx(self._folder(root) / name, shape) for name, shape in SHAPES.items()
            )
        except DataFileError as error:
            raise data_error(self.title, error.file, self.source, root) from error
        return ImageData(
            train_images=pad_to(train_images[:, None], image_size),
            train_labels=train_labels.long(),
            test_images=pad_to(test_images[:, None], image_size),
            test_labels=test_labels.long(),
            class_names=tuple(getattr(datasets, self.torchvision_class).classes),
        )

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download missing files from torchvision's mirrors and unpack them.

        Raises:
            hgmvae_bench.data.DataError: if that fails.
        """
        from torchvision import datasets

        published = getattr(datasets, self.torchvision_class)
        folder = self._folder(root)
        for archive, md5 in published.resources:
            name = archive.removesuffix(".gz")
            state = _state(folder / name, SHAPES[name])
            if state.state == "complete":
                continue
            if state.state == "damaged":
                raise data_error(self.title, state, self.source, root)
            zipped = folder / archive
            downloaded = fetch_file(
                [f"{mirror}{archive}" for mirror in published.mirrors],
                zipped,
                md5=md5,
                progress=progress,
                by_hand=f"without network, put {archive} from {self.source.address} into {folder} "
                f"({self.source.size} in all four files) and fetch again, which unpacks it",
            )
            gunzip(zipped, folder / name)
            if downloaded:
                zipped.unlink()

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Check length, shape and labels of all four files."""
        files = tuple(_state(self._folder(root) / name, shape) for name, shape in SHAPES.items())
        return DatasetReport(self.title, files, self.source.advice(root))

    def _folder(self, root: Path) -> Path:
        return root / self.torchvision_class / "raw"


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return the uint8 tensor of an IDX file.

    Raises:
        DataFileError: if the file is missing, truncated or of another shape, or has unknown labels.
    """
    import torch
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if not path.exists():
        raise DataFileError(path, "missing", "the file does not exist")
    length = 4 * (1 + len(shape)) + math.prod(shape)
    if path.stat().st_size != length:
        found = f"damaged: {path.stat().st_size:,} bytes, expected {length:,}"
        raise DataFileError(path, "damaged", found)
    try:
        tensor: Tensor = read_sn3_pascalvincent_tensor(str(path))
    # A damaged header raises various errors in torchvision's reader, KeyError among them.
    except Exception as error:
        raise DataFileError(path, "damaged", f"damaged header ({error_reason(error)})") from error
    if tensor.dtype != torch.uint8 or tensor.shape != shape:
        found = f"has {tensor.dtype} {tuple(tensor.shape)}, expected torch.uint8 {shape}"
        raise DataFileError(path, "damaged", found)
    if tensor.ndim == 1 and tensor.max() >= N_CLASSES:
        raise DataFileError(path, "damaged", f"damaged: it has a label {int(tensor.max())}")
    return tensor


def _state(path: Path, shape: tuple[int, ...]) -> FileStatus:
    try:
        read_idx(path, shape)
    except DataFileError as error:
        return error.file
    return FileStatus(path, "complete", f"{' × '.join(f'{n:,}' for n in shape)} bytes")


def _source(name: str, folder: str, address: str, size: str) -> Source:
    return Source(
        name=name,
        address=address,
        layout=f"{folder}/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte",
        size=size,
    )


MNIST = MnistLike(
    title="MNIST",
    reference="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning",
    torchvision_class="MNIST",
    source=_source("mnist", "MNIST", "http://yann.lecun.com/exdb/mnist/", "12 MB"),
    reconstruction_loss="bce",
)
FASHION_MNIST = MnistLike(
    title="Fashion-MNIST",
    reference="Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747",
    torchvision_class="FashionMNIST",
    source=_source(
        "fashion-mnist",
        "FashionMNIST",
        "https://github.com/zalandoresearch/fashion-mnist",
        "31 MB",
    ),
    reconstruction_loss="mse",
)
