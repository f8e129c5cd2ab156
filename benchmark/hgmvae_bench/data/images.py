"""Image files: the files of a dataset, and their conversion to arrays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.data import DataError
from hgmvae_bench.data.source import DataFileError, FileStatus, Progress, error_reason, no_progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Pixels = npt.NDArray[np.uint8]

SplitName = Literal["train", "validation", "test"]

PREPROCESSING = 1
"""Raised when the code below yields other pixels for a file; cached arrays are then rebuilt."""

BLOCK = 1024
"""Images per block: enough to keep every thread busy, and 12 MB at 64×64 in colour."""

MAX_REPORTED = 20


class ImageSizeError(DataFileError):
    """An image whose size is not that of the others."""


class ImageDepthError(DataFileError):
    """An image with more bits per channel than expected."""


@dataclass(frozen=True)
class Rule:
    """Conversion of an image file to a (C, S, S) array.

    The steps, in order:

    1. Rotate the image upright (EXIF), and put it on white where it is transparent.
    2. Convert it to grey or colour.
    3. Crop it to the centre ``crop`` × ``crop`` pixels, if ``crop`` is given.
    4. Resize it so that the shorter side has ``image_size`` pixels (Pillow's bilinear filter,
       antialiased), and crop the longer side about the centre.

    Attributes:
        image_size: S, in pixels.
        channels: C, 1 or 3.
        size: (width, height) in pixels that every file must have; None allows any.
        size_of: the file that ``size`` was read from; None if the dataset prescribes it.
        crop: side in pixels of the centre square; None for no crop.
        bits: maximum bits per channel, 8 or 16. With 16, 16-bit greyscale is divided by 257 and
            rounded to 8 bits.
    """

    image_size: int
    channels: int
    size: tuple[int, int] | None = None
    size_of: str | None = None
    crop: int | None = None
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, expected at least 1")

    def decode(self, path: str | Path) -> Pixels:
        """Return the uint8 array (C, S, S) of one file.

        Raises:
            DataFileError: if the file is not a complete image.
            ImageDepthError: if it has more than ``bits`` bits per channel.
            ImageSizeError: if its size is not ``size``.
        """
        import numpy as np
        from PIL import ImageOps
        from PIL.Image import Resampling

        image = read_image(path, self.bits)
        if self.size is not None and image.size != self.size:
            found = f"{image.width}×{image.height} pixels"
            detail = f"has {found}, expected {self.size[0]}×{self.size[1]}"
            if self.size_of is not None:
                detail += f", the size of {self.size_of}"
            raise ImageSizeError(Path(path), "damaged", detail)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.crop is not None:
            image = _crop_centre(image, self.crop)
        side = (self.image_size, self.image_size)
        pixels = np.asarray(ImageOps.fit(image, side, method=Resampling.BILINEAR))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)


def read_image(path: str | Path, bits: int = 8) -> Image:
    """Read an image upright, opaque and with 8 bits per channel.

    Args:
        path: the file.
        bits: maximum bits per channel. With 16, 16-bit greyscale is converted to 8 bits.

    Raises:
        DataFileError: if the file cannot be decoded.
        ImageDepthError: if it has more than ``bits`` bits per channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            image = _to_8_bits(file, path, bits)
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image
    except ImageDepthError:
        raise
    except FileNotFoundError as error:
        raise DataFileError(Path(path), "missing", "the file does not exist") from error
    # On damaged files, Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, ….
    except Exception as error:
        # Pillow's own message repeats the path.
        detail = error_reason(error).replace(f" {str(path)!r}", "")
        detail = f"cannot be read as an image ({detail})"
        raise DataFileError(Path(path), "damaged", detail) from error


def _to_8_bits(image: Image, path: str | Path, bits: int) -> Image:
    """Divide 16-bit greyscale by 257, so that 65,535 becomes 255; leave 8-bit images as they are.

    Raises:
        ImageDepthError: if the image has more than ``bits`` bits per channel.
    """
    import numpy as np
    from PIL import Image as PillowImage

    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    # Pillow reads some 16-bit files into 32 bits (mode I).
    fits = image.mode != "F" and pixels.min() >= 0 and pixels.max() <= 0xFFFF
    if bits < 16 or not fits:
        detail = f"has more than {bits} bits per channel"
        raise ImageDepthError(Path(path), "damaged", detail)
    converted = PillowImage.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    converted.info = {key: image.info[key] for key in ("exif",) if key in image.info}
    return converted


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
    """A dataset of image files.

    Attributes:
        title: title of the dataset, for messages.
        slug: short name for the cache.
        folder: folder that the paths of the files start from.
        splits: ``train``, ``test`` and optionally ``validation``.
        rule: conversion of a file to an array.
        class_names: names in the order of the labels; empty without classes.
        advice: what to do about a file that cannot be used, for messages.
        special_advice: advice for special errors, by their class.
    """

    title: str
    slug: str
    folder: Path
    splits: Mapping[SplitName, Split]
    rule: Rule
    class_names: tuple[str, ...] = ()
    advice: str = "put the original file in its place"
    special_advice: Mapping[type[DataFileError], str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of images in all splits."""
        return sum(len(split.files) for split in self.splits.values())

    def paths(self, split: SplitName) -> list[str]:
        """Paths of one split's files, as strings: creating 200,000 `Path`s takes a second."""
        start = f"{self.folder}{os.sep}"
        return [start + file for file in self.splits[split].files]

    def identity(self) -> str:
        """Hash (hex) of everything that the arrays depend on, without reading an image.

        The hash covers the name, size and modification time of each file, so that a changed file
        is detected without reading it.

        Raises:
            DataError: if a file is missing.
        """
        rule = asdict(self.rule)
        if rule["bits"] == 8:
            del rule["bits"]  # caches of 8-bit images are older than this setting
        recipe = {
            "preprocessing": PREPROCESSING,
            "rule": rule,
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
                        f"{self.title}: {path}: {error_reason(error)}; {self.advice}"
                    ) from error
                lines.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}")
            sha.update("\n".join([*lines, str(split.labels)]).encode("utf-8", "surrogateescape"))
        return sha.hexdigest()

    def blocks(self, split: SplitName) -> Iterator[Pixels]:
        """Iterate over the arrays (B, C, S, S) of one split, decoded by several threads.

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
                except DataFileError as error:
                    advice = self.special_advice.get(type(error), self.advice)
                    raise DataError(f"{self.title}: {error}; {advice}") from error

    def check(self, progress: Progress = no_progress) -> list[FileStatus]:
        """Decode every image; return those that cannot be used, the first 20 by name."""
        unusable: list[FileStatus] = []
        done = 0
        with ThreadPoolExecutor(_threads()) as pool:
            for split in self.splits:
                paths = self.paths(split)
                for start in range(0, len(paths), BLOCK):
                    block = paths[start : start + BLOCK]
                    unusable += [status for status in pool.map(self._try, block) if status]
                    done += len(block)
                    progress(f"decoding {self.title}", done, self.count)
        if not unusable:
            return [FileStatus(self.folder, "complete", f"all {self.count:,} images decode")]
        unnamed = len(unusable) - MAX_REPORTED
        more = FileStatus(self.folder, "damaged", f"and {unnamed:,} more images")
        return [*unusable[:MAX_REPORTED], *([more] if unnamed > 0 else [])]

    def _try(self, path: str) -> FileStatus | None:
        """Decode an image; return its status if that fails."""
        try:
            self.rule.decode(path)
        except DataFileError as error:
            if advice := self.special_advice.get(type(error)):
                return replace(error.file, detail=f"{error.file.detail}; {advice}")
            return error.file
        return None


def common_size(
    folder: Path, splits: Mapping[SplitName, Split], bits: int = 8
) -> tuple[tuple[int, int], str]:
    """Return (width, height) in pixels of the first training image, and its name.

    Raises:
        DataFileError: if the image cannot be read.
    """
    first = splits["train"].files[0]
    return read_image(folder / first, bits).size, first


def _threads() -> int:
    """Number of decoding threads. Pillow releases the interpreter lock; 8 saturate the disk."""
    from hgmvae_bench.utils.threads import available_cores

    return min(8, available_cores())
