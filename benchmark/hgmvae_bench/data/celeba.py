"""CelebA: aligned faces, in the layout of its authors and torchvision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgmvae_bench.data import DataError, ImageData, cache
from hgmvae_bench.data.download import fetch_from_drive, refuse_to_replace, unpack
from hgmvae_bench.data.images import ImageFiles, Rule, Split, SplitName
from hgmvae_bench.data.source import (
    DataFileError,
    DatasetReport,
    Progress,
    Source,
    check_md5,
    data_error,
    warn_if_incomplete,
)
from hgmvae_bench.plugins.protocols import ReconstructionLoss
from hgmvae_bench.utils.text import quote

FOLDER, IMAGES, PARTITION = "celeba", "img_align_celeba", "list_eval_partition.txt"
ARCHIVE = f"{IMAGES}.zip"
COUNT = 202_599
N_TRAIN, N_TEST = 162_770, 19_962
SIZE = (178, 218)
CROP = 148
# Second column of the partition file.
SPLITS: dict[str, SplitName] = {"0": "train", "1": "validation", "2": "test"}

SOURCE = Source(
    name="celeba",
    address="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    layout=f"{FOLDER}/{PARTITION} and {FOLDER}/{IMAGES}/{{000001,…,{COUNT}}}.jpg",
    size="1.4 GB",
)


@dataclass(frozen=True)
class CelebA:
    """202,599 aligned faces of 178×218, cropped to the centre 148×148 and resized.

    The official partition file gives the split: 162,770 training, 19,867 validation and 19,962 test
    images, without a person in two of them. Only `with_validation_as_test` uses the validation
    images. The dataset has attributes but no classes, so there are no labels.
    """

    title: str = "CelebA"
    reference: str = "Liu, Luo, Wang & Tang 2015, Deep learning face attributes in the wild"
    image_size: int = 64
    channels: int = 3
    n_train_images: int = N_TRAIN
    n_test_images: int = N_TEST
    reconstruction_loss: ReconstructionLoss = "mse"
    source: Source = SOURCE

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read ``root/celeba`` through the cache.

        Raises:
            hgmvae_bench.data.DataError: if an image or the partition file is missing or damaged.
            ValueError: if ``image_size`` is not positive.
        """
        try:
            images = self.image_files(root, image_size)
        except DataFileError as error:
            raise data_error(self.title, error.file, self.source, root) from error
        warn_if_incomplete(self.title, images.folder, images.count, COUNT)
        return cache.load(images, root)

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download the partition file and the archive of images, and unpack it.

        Both are on Google Drive, which often refuses downloads; torchvision uses the package
        ``gdown``. Files that the user puts in place are used if their MD5 is right.

        Raises:
            hgmvae_bench.data.DataError: if that fails; the message says how to get the files.
        """
        from torchvision import datasets

        folder = root / FOLDER
        published = {name: (drive_id, md5) for drive_id, md5, name in datasets.CelebA.file_list}
        drive_id, md5 = published[PARTITION]
        self._from_drive(folder / PARTITION, drive_id, md5)
        try:
            images = self.image_files(root, self.image_size)
            images.identity()
        except (DataFileError, DataError):
            pass
        else:
            return
        refuse_to_replace(folder / IMAGES)
        drive_id, md5 = published[ARCHIVE]
        downloaded = self._from_drive(folder / ARCHIVE, drive_id, md5)
        unpack(folder / ARCHIVE, folder, IMAGES, progress)
        if downloaded:
            (folder / ARCHIVE).unlink()

    def _from_drive(self, target: Path, drive_id: str, md5: str) -> bool:
        return fetch_from_drive(
            drive_id,
            target,
            md5=md5,
            by_hand=f"by hand: from {self.source.address} (its Google Drive or Baidu folder) get "
            f"{PARTITION} and Img/{ARCHIVE} ({self.source.size}), put both into {target.parent}, "
            "and fetch again, which verifies and unpacks them",
        )

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Compare the MD5 of the partition file with the official one, and decode every image."""
        from torchvision import datasets

        published = {name: md5 for _, md5, name in datasets.CelebA.file_list}
        try:
            images = self.image_files(root, self.image_size)
        except DataFileError as error:
            return DatasetReport(self.title, (error.file,), self.source.advice(root))
        partition = check_md5(root / FOLDER / PARTITION, published[PARTITION])
        files = (partition, *cache.check(images, root, progress))
        return DatasetReport(self.title, files, self.source.advice(root))

    def image_files(self, root: Path, image_size: int) -> ImageFiles:
        """Image files, split by the partition file.

        Raises:
            DataFileError: if the partition file or the images' folder cannot be used.
        """
        folder = root / FOLDER
        names = read_partition(folder / PARTITION)
        if not (folder / IMAGES).is_dir():
            raise DataFileError(folder / IMAGES, "missing", "there is no such folder")
        return ImageFiles(
            title=self.title,
            slug="celeba",
            folder=folder / IMAGES,
            splits={split: Split(files) for split, files in names.items()},
            rule=Rule(image_size, self.channels, size=SIZE, crop=CROP),
        )


def read_partition(path: Path) -> dict[SplitName, Sequence[str]]:
    """File names by split, from lines such as ``000001.jpg 0``.

    Raises:
        DataFileError: if the file is absent, a line is not of that form, or a split is empty.
    """
    names: dict[SplitName, list[str]] = {split: [] for split in SPLITS.values()}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise DataFileError(path, "missing", "the file does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(path, "damaged", f"cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        name, _, split = line.strip().partition(" ")
        if split not in SPLITS or os.sep in name:
            detail = f"line {number} is {quote(line)}, expected a file name and 0, 1 or 2"
            raise DataFileError(path, "damaged", detail)
        names[SPLITS[split]].append(name)
    for split, files in names.items():
        if not files:
            raise DataFileError(path, "damaged", f"no image is in its {split} split")
    return dict(names)


CELEBA = CelebA()
