"""Image files: which ones make up a dataset, and how one becomes an array."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.data import DataError, IncompleteDataWarning
from hgmvae_bench.data.source import DataFileError, FileStatus, Progress, no_progress, reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Pixels = npt.NDArray[np.uint8]

SplitName = Literal["train", "validation", "test"]

# Raised when the code below makes other pixels of the same file: cached arrays are then made anew.
PREPROCESSING = 1
# Images that are decoded, then handed on together: enough to keep every thread busy, and small
# (12 MB at 64×64 in colour) beside the arrays that they go into.
BLOCK = 1024
FAULTS_NAMED = 20


@dataclass(frozen=True)
class Rule:
    """How an image file becomes a (C, S, S) array.

    The image is turned upright (EXIF) and laid on white where it is transparent; converted to
    grey or colour; cropped to ``crop`` × ``crop`` pixels about its centre, if that is given;
    resized so that its shorter side has ``image_size`` pixels (Pillow's bilinear filter, which
    averages over the pixels that it merges); and the longer side is cropped about the centre.

    Attributes:
        image_size: S, in pixels.
        channels: C, 1 or 3.
        size: (width, height) in pixels that every file must have; any if None.
        size_of: the file that gave ``size``, where it is not given by the dataset.
        crop: side in pixels of the centre square that is cut out first; none if None.
    """

    image_size: int
    channels: int
    size: tuple[int, int] | None = None
    size_of: str | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, expected at least 1")

    def decode(self, path: str | Path) -> Pixels:
        """The uint8 array (C, S, S) of one file.

        Raises:
            DataFileError: if it is no whole image, has more than 8 bits per channel, or is not of
                ``size``.
        """
        import numpy as np
        from PIL import ImageOps
        from PIL.Image import Resampling

        image = read_image(path)
        if self.size is not None and image.size != self.size:
            found = f"{image.width}×{image.height} pixels"
            fault = f"has {found}, expected {self.size[0]}×{self.size[1]}"
            if self.size_of is not None:
                fault += f", the size of {self.size_of}"
            raise DataFileError(Path(path), "damaged", fault)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.crop is not None:
            image = _crop_centre(image, self.crop)
        side = (self.image_size, self.image_size)
        pixels = np.asarray(ImageOps.fit(image, side, method=Resampling.BILINEAR))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def read_image(path: str | Path) -> Image:
    """A whole image, upright and opaque.

    Raises:
        DataFileError: if the file cannot be decoded, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
    # Pillow's decoders raise whatever a broken file makes them trip over: OSError, SyntaxError,
    # struct.error, ValueError and more.
    except FileNotFoundError as error:
        raise DataFileError(Path(path), "missing", "not there") from error
    except Exception as error:
        # Pillow's own message repeats the path.
        fault = reason(error).replace(f" {str(path)!r}", "")
        raise DataFileError(
            Path(path), "damaged", f"cannot be read as an image ({fault})"
        ) from error
    if image.mode.startswith(("I", "F")):
        fault = "has more than 8 bits per channel; convert it to 8 bits"
        raise DataFileError(Path(path), "damaged", fault)
    return image


def _crop_centre(image: Image, side: int) -> Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class Split:
    """The image files of one split.

    Attributes:
        files: paths below the dataset's folder, in the order of the images.
        labels: a class per file, or None for a dataset without classes.
    """

    files: Sequence[str]
    labels: Sequence[int] | None = None


@dataclass(frozen=True)
class ImageFiles:
    """A dataset that lies on disk as image files.

    Attributes:
        title: the dataset's, for messages.
        slug: short name for the cache.
        folder: what the files' paths start from.
        splits: ``train``, ``test`` and maybe ``validation``.
        rule: how a file becomes an array.
        class_names: names in the order of the labels; empty without classes.
        cure: what to do about a file that cannot be used, for messages.
    """

    title: str
    slug: str
    folder: Path
    splits: Mapping[SplitName, Split]
    rule: Rule
    class_names: tuple[str, ...] = ()
    cure: str = "put the original file in its place"

    @property
    def count(self) -> int:
        """Number of images in all splits."""
        return sum(len(split.files) for split in self.splits.values())

    def paths(self, split: SplitName) -> list[str]:
        """Paths of one split's files. Strings: 200,000 `Path`s take a second to make."""
        start = f"{self.folder}{os.sep}"
        return [start + file for file in self.splits[split].files]

    def identity(self) -> str:
        """Hash (hex) of all that decides the arrays, without reading an image.

        A file counts with its name, its size and the time of its last change, so that a changed
        file is noticed at the cost of one look at the folder.

        Raises:
            DataError: if a file is not there.
        """
        recipe = {
            "preprocessing": PREPROCESSING,
            "rule": asdict(self.rule),
            "classes": self.class_names,
        }
        sha = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for name, split in self.splits.items():
            lines: list[str] = [name]
            for file, path in zip(split.files, self.paths(name), strict=True):
                try:
                    status = os.stat(path)  # noqa: PTH116
                except OSError as error:
                    raise DataError(
                        f"{self.title}: {path}: {reason(error)}; {self.cure}"
                    ) from error
                lines.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}")
            sha.update("\n".join([*lines, str(split.labels)]).encode("utf-8", "surrogateescape"))
        return sha.hexdigest()

    def blocks(self, split: SplitName) -> Iterator[Pixels]:
        """The arrays (B, C, S, S) of one split in order, decoded by several threads.

        Raises:
            DataError: if a file cannot be used; the message names it.
        """
        import numpy as np

        paths = self.paths(split)
        with ThreadPoolExecutor(_threads()) as pool:
            for start in range(0, len(paths), BLOCK):
                block = paths[start : start + BLOCK]
                try:
                    yield np.ascontiguousarray(list(pool.map(self.rule.decode, block)))
                except DataFileError as fault:
                    raise DataError(f"{self.title}: {fault}; {self.cure}") from fault

    def check(self, progress: Progress = no_progress) -> list[FileStatus]:
        """Decode every image and say which ones cannot be used (the first 20 by name)."""
        faults: list[FileStatus] = []
        done = 0
        with ThreadPoolExecutor(_threads()) as pool:
            for split in self.splits:
                paths = self.paths(split)
                for start in range(0, len(paths), BLOCK):
                    block = paths[start : start + BLOCK]
                    faults += [fault for fault in pool.map(self._fault, block) if fault]
                    done += len(block)
                    progress(f"decoding {self.title}", done, self.count)
        if not faults:
            return [FileStatus(self.folder, "complete", f"all {self.count:,} images decode")]
        unnamed = len(faults) - FAULTS_NAMED
        more = FileStatus(self.folder, "damaged", f"and {unnamed:,} more images")
        return [*faults[:FAULTS_NAMED], *([more] if unnamed > 0 else [])]

    def _fault(self, path: str) -> FileStatus | None:
        try:
            self.rule.decode(path)
        except DataFileError as fault:
            return fault.file
        return None


def common_size(folder: Path, splits: Mapping[SplitName, Split]) -> tuple[tuple[int, int], str]:
    """(width, height) in pixels of the first training image, and its name.

    Raises:
        DataFileError: if it cannot be read.
    """
    first = splits["train"].files[0]
    return read_image(folder / first).size, first


def warn_if_incomplete(images: ImageFiles, count: int) -> None:
    """Warn if these are not as many images as the official dataset has."""
    if images.count != count:
        warnings.warn(
            f"{images.folder} has {images.count:,} images where {images.title} has {count:,}: "
            "results on them are not comparable with others",
            IncompleteDataWarning,
            stacklevel=3,
        )


def _threads() -> int:
    """Pillow decodes outside the interpreter lock; beyond a few threads the disk is the limit."""
    return min(8, os.cpu_count() or 1)
