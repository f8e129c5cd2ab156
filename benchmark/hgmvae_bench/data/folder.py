"""A folder of images as a dataset: ``folder:PATH`` or ``folder:PATH?channels=1&sizes=mixed``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from hgmvae_bench.data import DataError, ImageData, cache
from hgmvae_bench.data.images import (
    ImageDepthError,
    ImageFiles,
    ImageSizeError,
    Rule,
    Split,
    SplitName,
    common_size,
)
from hgmvae_bench.data.source import DataFileError, DatasetReport, Progress, expand_user
from hgmvae_bench.data.splits import share, shuffled
from hgmvae_bench.plugins.protocols import ReconstructionLoss, UnknownNameError
from hgmvae_bench.utils.text import quote

TEST_FRACTION = 0.2
# Sub-folders with a given split. Without both `train` and `test`, the split is seeded.
SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
LAYOUT_ADVICE = (
    "expected images in it, or in one folder per class, or either of these below train and test; "
    "a PATH that is not absolute starts at the data folder (--data or HGMVAE_BENCH_DATA)"
)
FILE_ADVICE = "replace it with an undamaged image, or remove it"
SPECIAL_ADVICE: Mapping[type[DataFileError], str] = {
    ImageSizeError: (
        "to read images of different sizes, add sizes=mixed to the name: folder:PATH?sizes=mixed"
    ),
    ImageDepthError: (
        "convert it to 8 bits, or add bits=16 to the name to read 16-bit greyscale images as "
        "8-bit: folder:PATH?bits=16"
    ),
}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected an integer above 0, got {quote(text)}")
    return int(text)


def _one_of(*choices: Any) -> Callable[[str], Any]:
    by_text = {str(choice): choice for choice in choices}

    def parse(text: str) -> Any:
        if text not in by_text:
            raise ValueError(f"expected {' or '.join(by_text)}, got {quote(text)}")
        return by_text[text]

    return parse


OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "image-size": ("image_size", _positive),
    "channels": ("channels", _one_of(1, 3)),
    "sizes": ("sizes", _one_of("same", "mixed")),
    "bits": ("bits", _one_of(8, 16)),
    "loss": ("reconstruction_loss", _one_of("bce", "mse")),
}


@dataclass(frozen=True)
class Folder:
    """Images in a folder, with or without a sub-folder per class.

    Files with the suffix of an image format are read. Other files, and names that begin with a dot,
    are ignored. Class folders are sorted by name and searched to any depth.

    Sub-folders ``train`` and ``test`` (and optionally ``val``) give the split. Without them, a
    fifth of each class is the test split: the first files in an order that depends only on their
    names (`splits.shuffled`).

    Attributes:
        path: the folder; absolute, or relative to the data folder.
        image_size: side in pixels, unless a grid sets another.
        channels: 1 (grey) or 3.
        sizes: ``same`` requires the size of the first image; ``mixed`` allows any size.
        bits: maximum bits per channel; 16 reads 16-bit greyscale images as 8-bit.
        reconstruction_loss: ``bce`` or ``mse``.
    """

    title: str = "Image folder"
    reference: str = "images of your own: folder:PATH"
    path: str | None = None
    image_size: int = 64
    channels: int = 3
    sizes: Literal["same", "mixed"] = "same"
    bits: Literal[8, 16] = 8
    reconstruction_loss: ReconstructionLoss = "mse"

    def with_argument(self, argument: str) -> Folder:
        """Return the dataset of one folder.

        Args:
            argument: ``PATH`` or ``PATH?OPTION=VALUE&…``; the options are ``image-size``,
                ``channels``, ``sizes``, ``bits`` and ``loss``.

        Raises:
            UnknownNameError: if an option is unknown.
            ValueError: if the path is missing or the value of an option is invalid.
        """
        path, _, query = argument.partition("?")
        if not path:
            raise ValueError("folder: needs the path of a folder, as in folder:PATH")
        options: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in OPTIONS:
                raise UnknownNameError("option of folder:PATH", name, list(OPTIONS))
            field, parse = OPTIONS[name]
            try:
                options[field] = parse(text)
            except ValueError as error:
                raise ValueError(f"option {name} of folder:{path}: {error}") from error
        # The absolute path gives `.` and `..` a name.
        try:
            title = expand_user(path).absolute().name or path
        except DataError as error:
            raise ValueError(f"folder:{error}") from error
        return replace(self, path=path, title=title, **options)

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the images through the cache of the data folder ``root``.

        Raises:
            hgmvae_bench.data.DataError: if the folder or its images are missing, a class is empty,
                or an image is damaged, has another size than the first or too many bits.
            ValueError: if ``image_size`` is not positive.
        """
        try:
            images = self.image_files(root, image_size)
        except DataFileError as error:
            raise DataError(f"{self.title}: {error}; {_advice(error)}") from error
        return cache.load(images, root)

    def fetch(self, root: Path, progress: Progress) -> None:
        """Check that the folder exists; there is nothing to download.

        Raises:
            hgmvae_bench.data.DataError: if the folder does not exist.
        """
        folder = self._folder(root)
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist and cannot be downloaded; {LAYOUT_ADVICE}")

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Decode every image."""
        try:
            images = self.image_files(root, self.image_size)
        except DataFileError as error:
            return DatasetReport(self.title, (error.file,), _advice(error))
        return DatasetReport(self.title, tuple(cache.check(images, root, progress)), images.advice)

    def _folder(self, root: Path) -> Path:
        if self.path is None:
            raise DataError("the dataset 'folder' needs a path: folder:PATH")
        return root / expand_user(self.path)

    def image_files(self, root: Path, image_size: int) -> ImageFiles:
        """The image files and their split.

        Raises:
            DataFileError: if the folder does not hold such a dataset.
        """
        folder = self._folder(root)
        if not folder.is_dir():
            raise DataFileError(folder, "missing", "there is no such folder")
        names = [entry.name for entry in _subfolders(folder)]
        if {"train", "test"} <= set(names):
            splits, classes = _given_split(folder, names)
        else:
            splits, classes = _seeded_split(folder)
        size, first = (None, None)
        if self.sizes == "same":
            size, first = common_size(folder, splits, self.bits)
        return ImageFiles(
            title=self.title,
            slug="folder",
            folder=folder,
            splits=splits,
            rule=Rule(image_size, self.channels, size=size, size_of=first, bits=self.bits),
            class_names=classes,
            advice=FILE_ADVICE,
            special_advice=SPECIAL_ADVICE,
        )


def _advice(error: DataFileError) -> str:
    """Return the advice for an error that was found before the images are decoded."""
    return SPECIAL_ADVICE.get(
        type(error), FILE_ADVICE if error.file.path.is_file() else LAYOUT_ADVICE
    )


def _given_split(folder: Path, names: list[str]) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
    splits: dict[SplitName, Split] = {}
    classes: tuple[str, ...] | None = None
    for name in names:
        if name not in SPLIT_FOLDERS or SPLIT_FOLDERS[name] in splits:
            detail = f"is beside train and test, where only {', '.join(SPLIT_FOLDERS)} may be"
            raise DataFileError(folder / name, "damaged", detail)
        files = _by_class(folder / name)
        if classes is not None and tuple(files) != classes:
            different = ", ".join(sorted(set(classes) ^ set(files)))
            detail = f"does not have the classes of the other splits; they differ in {different}"
            raise DataFileError(folder / name, "damaged", detail)
        classes = tuple(files)
        splits[SPLIT_FOLDERS[name]] = _make_split(
            {label: [f"{name}/{file}" for file in chosen] for label, chosen in files.items()}
        )
    return splits, tuple(name for name in classes or () if name)


def _seeded_split(folder: Path) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for name, files in _by_class(folder).items():
        count = share(len(files), TEST_FRACTION)
        if count == len(files):
            detail = "has a single image, but training and test need one each"
            raise DataFileError(folder / name, "damaged", detail)
        order = shuffled(files)
        test[name], train[name] = sorted(order[:count]), sorted(order[count:])
    classes = tuple(name for name in train if name)
    return {"train": _make_split(train), "test": _make_split(test)}, classes


def _make_split(files: Mapping[str, list[str]]) -> Split:
    """Make a split from its files by class; without labels if the only class has no name."""
    flat = [file for chosen in files.values() for file in chosen]
    if "" in files:
        return Split(flat)
    return Split(flat, [label for label, chosen in enumerate(files.values()) for _ in chosen])


def _by_class(folder: Path) -> dict[str, list[str]]:
    """Image files below ``folder`` by class; under the name "" if there are no sub-folders.

    Raises:
        DataFileError: if there are no images, a class has none, or there are images beside
            sub-folders.
    """
    loose = _images_in(folder, deep=False)
    classes = [entry.name for entry in _subfolders(folder)]
    if loose and classes:
        detail = f"has images beside class folders ({loose[0]} beside {classes[0]})"
        raise DataFileError(folder, "damaged", detail)
    if loose:
        return {"": loose}
    files = {name: _images_in(folder / name, deep=True) for name in classes}
    if not files:
        raise DataFileError(folder, "missing", "has no images")
    for name, found in files.items():
        if not found:
            raise DataFileError(folder / name, "damaged", "this class folder has no images")
    return {name: [f"{name}/{file}" for file in found] for name, found in files.items()}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _images_in(folder: Path, *, deep: bool) -> list[str]:
    """Sorted paths below ``folder`` of its image files, including sub-folders if ``deep``."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        found += [
            Path(place, name).relative_to(folder).as_posix()
            for name in files
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


FOLDER = Folder()
