"""Any folder of images as a dataset: ``folder:PATH`` or ``folder:PATH?channels=1&sizes=mixed``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from hgmvae_bench.data import DataError, ImageData, cache
from hgmvae_bench.data.images import ImageFiles, Rule, Split, SplitName, common_size
from hgmvae_bench.data.source import DataFileError, DatasetReport, Progress
from hgmvae_bench.data.splits import share, shuffled
from hgmvae_bench.plugins.protocols import ReconstructionLoss, UnknownNameError

TEST_FRACTION = 0.2
# Sub-folders that give the split; without both `train` and `test`, it is a seeded one.
SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
ADVICE = (
    "expected images in it, or in one folder per class, or either of these below train and test; "
    "a PATH that is not absolute starts at the data folder (--data or HGMVAE_BENCH_DATA)"
)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected a whole number above 0, got '{text}'")
    return int(text)


def _one_of(*choices: Any) -> Callable[[str], Any]:
    by_text = {str(choice): choice for choice in choices}

    def parse(text: str) -> Any:
        if text not in by_text:
            raise ValueError(f"expected {' or '.join(by_text)}, got '{text}'")
        return by_text[text]

    return parse


OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "image-size": ("image_size", _positive),
    "channels": ("channels", _one_of(1, 3)),
    "sizes": ("sizes", _one_of("same", "mixed")),
    "loss": ("reconstruction_loss", _one_of("bce", "mse")),
}


@dataclass(frozen=True)
class Folder:
    """Images in a folder, in class sub-folders or not.

    Files count as images by their suffix; others, and names that begin with a dot, are passed
    over. Class folders are taken in the order of their names, and are searched to any depth.

    The split is by the sub-folders ``train`` and ``test`` (and ``val``, if it is there). Where
    those are not, a fifth of each class is the test split: the first of the files in an order
    that depends on nothing but their names (`splits.shuffled`).

    Attributes:
        path: the folder; absolute, or from the data folder.
        image_size: side in pixels, unless a grid asks for another.
        channels: 1 (grey) or 3.
        sizes: ``same`` holds every image to the size of the first; ``mixed`` takes images of any
            size by the rule of `images.Rule` (shorter side resized, longer side cropped).
        reconstruction_loss: as for every dataset.
    """

    title: str = "Image folder"
    reference: str = "images of your own: folder:PATH"
    path: str | None = None
    image_size: int = 64
    channels: int = 3
    sizes: Literal["same", "mixed"] = "same"
    reconstruction_loss: ReconstructionLoss = "mse"

    def with_argument(self, argument: str) -> Folder:
        """The dataset of one folder.

        Args:
            argument: ``PATH`` or ``PATH?OPTION=VALUE&…``; the options are ``image-size``,
                ``channels``, ``sizes`` and ``loss``.

        Raises:
            UnknownNameError: if there is no such option.
            ValueError: if there is no path, or an option's value is not one that it can have.
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
        # An absolute name gives `.` and the like a name of their own.
        title = Path(path).expanduser().absolute().name or path
        return replace(self, path=path, title=title, **options)

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the images by way of the cache, which is kept for the data folder ``root``.

        Raises:
            hgmvae_bench.data.DataError: if the folder or its images are absent, a class is empty,
                or an image is damaged or of another size than the first.
            ValueError: if ``image_size`` is not positive.
        """
        try:
            images = self._images(root, image_size)
        except DataFileError as fault:
            raise DataError(f"{self.title}: {fault}; {ADVICE}") from fault
        return cache.load(images, root)

    def fetch(self, root: Path, progress: Progress) -> None:
        """There is nothing to fetch.

        Raises:
            hgmvae_bench.data.DataError: if the folder is not there.
        """
        folder = self._folder(root)
        if not folder.is_dir():
            raise DataError(f"{folder} is a folder of your own and cannot be fetched; {ADVICE}")

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Look at every image."""
        try:
            images = self._images(root, self.image_size)
        except DataFileError as fault:
            return DatasetReport(self.title, (fault.file,), ADVICE)
        return DatasetReport(self.title, tuple(cache.check(images, root, progress)), images.cure)

    def _folder(self, root: Path) -> Path:
        if self.path is None:
            raise DataError("say which folder: folder:PATH, or folder:PATH?channels=1")
        return root / Path(self.path).expanduser()

    def _images(self, root: Path, image_size: int) -> ImageFiles:
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
        size, first = common_size(folder, splits) if self.sizes == "same" else (None, None)
        return ImageFiles(
            title=self.title,
            slug="folder",
            folder=folder,
            splits=splits,
            rule=Rule(image_size, self.channels, size=size, size_of=first),
            class_names=classes,
            cure="put a good image in its place, or remove it; if the images are meant to differ "
            "in size, add sizes=mixed to the name: folder:PATH?sizes=mixed",
        )


def _given_split(folder: Path, names: list[str]) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
    splits: dict[SplitName, Split] = {}
    classes: tuple[str, ...] | None = None
    for name in names:
        if name not in SPLIT_FOLDERS or SPLIT_FOLDERS[name] in splits:
            fault = f"stands beside train and test, expected {', '.join(SPLIT_FOLDERS)} alone"
            raise DataFileError(folder / name, "damaged", fault)
        files = _by_class(folder / name)
        if classes is not None and tuple(files) != classes:
            odd = sorted(set(classes) ^ set(files))
            fault = f"has not the classes of the other splits; they differ in {', '.join(odd)}"
            raise DataFileError(folder / name, "damaged", fault)
        classes = tuple(files)
        splits[SPLIT_FOLDERS[name]] = _labelled(
            {label: [f"{name}/{file}" for file in chosen] for label, chosen in files.items()}
        )
    return splits, tuple(name for name in classes or () if name)


def _seeded_split(folder: Path) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for name, files in _by_class(folder).items():
        count = share(len(files), TEST_FRACTION)
        if count == len(files):
            fault = "has a single image, and both training and test need one"
            raise DataFileError(folder / name, "damaged", fault)
        order = shuffled(files)
        test[name], train[name] = sorted(order[:count]), sorted(order[count:])
    classes = tuple(name for name in train if name)
    return {"train": _labelled(train), "test": _labelled(test)}, classes


def _labelled(files: Mapping[str, list[str]]) -> Split:
    """One split from its files by class; without labels if the only class has no name."""
    flat = [file for chosen in files.values() for file in chosen]
    if "" in files:
        return Split(flat)
    return Split(flat, [label for label, chosen in enumerate(files.values()) for _ in chosen])


def _by_class(folder: Path) -> dict[str, list[str]]:
    """Image files below ``folder`` by class; under the name "" if they lie in no sub-folder.

    Raises:
        DataFileError: if there are none, a class has none, or there are both kinds.
    """
    loose = _images_in(folder, deep=False)
    classes = [entry.name for entry in _subfolders(folder)]
    if loose and classes:
        fault = f"holds images beside class folders ({loose[0]} beside {classes[0]})"
        raise DataFileError(folder, "damaged", fault)
    if loose:
        return {"": loose}
    files = {name: _images_in(folder / name, deep=True) for name in classes}
    if not files:
        raise DataFileError(folder, "missing", "holds no images")
    for name, found in files.items():
        if not found:
            raise DataFileError(folder / name, "damaged", "this class folder holds no images")
    return {name: [f"{name}/{file}" for file in found] for name, found in files.items()}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _images_in(folder: Path, *, deep: bool) -> list[str]:
    """Paths below ``folder`` of its image files, sorted; with those of sub-folders if ``deep``."""
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
