"""Origin and state of a dataset's files.

This module imports no heavy library.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hgmvae_bench.data import DataError, IncompleteDataWarning

State = Literal["complete", "missing", "damaged"]


class Progress(Protocol):
    """Callback for the progress of a long task."""

    def __call__(self, task: str, done: int, total: int | None) -> None:
        """Report ``done`` of ``total`` bytes or images of ``task``; None: an unknown total."""


def no_progress(task: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Source:
    """Origin of a dataset, for messages and documentation.

    Attributes:
        name: registered name.
        address: web page of the publisher; downloads may come from mirrors.
        layout: the files below the data folder, for users who put them there by hand.
        size: size of the download, such as ``12 MB``.
    """

    name: str
    address: str
    layout: str
    size: str

    def advice(self, root: Path) -> str:
        """Return how to get the data into the data folder."""
        return (
            f"`hgmvae-bench data fetch {self.name} --data {root}` downloads it ({self.size}, "
            f"{self.address}); by hand: {self.layout}, below {root}; "
            "--data or HGMVAE_BENCH_DATA names another folder"
        )


@dataclass(frozen=True)
class FileStatus:
    """State of a file, or of a folder of images.

    Attributes:
        path: the file or folder.
        state: ``complete``, ``missing`` or ``damaged``.
        detail: the verified properties, or the error.
    """

    path: Path
    state: State
    detail: str


class DataFileError(Exception):
    """A missing or damaged file. Loading turns it into a `DataError`; a check reports it."""

    def __init__(self, path: Path, state: State, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.file = FileStatus(path, state, detail)


@dataclass(frozen=True)
class DatasetReport:
    """Result of checking a dataset.

    Attributes:
        title: title of the dataset.
        files: every file or folder that was checked.
        advice: what to do if the dataset is incomplete; empty if there is no advice.
    """

    title: str
    files: tuple[FileStatus, ...]
    advice: str = ""

    @property
    def complete(self) -> bool:
        """Whether no file is missing or damaged."""
        return all(file.state == "complete" for file in self.files)


def data_error(title: str, file: FileStatus, source: Source, root: Path) -> DataError:
    """Return the error for a dataset that cannot be loaded because of one file."""
    first = "" if file.state == "missing" else "move it away, then fetch it again: "
    return DataError(f"{title}: {file.path}: {file.detail}; {first}{source.advice(root)}")


def md5_of(path: Path) -> str:
    """MD5 (hex) of a file. Publishers of datasets state it; it does not protect from forgery."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_md5(path: Path, md5: str) -> FileStatus:
    """Compare the MD5 (hex) of a file with the published one."""
    if not path.exists():
        return FileStatus(path, "missing", "the file does not exist")
    if md5_of(path) != md5:
        return FileStatus(path, "damaged", f"not the published file (its MD5 is not {md5})")
    return FileStatus(path, "complete", "the published file, by its MD5")


def warn_if_incomplete(
    title: str, path: Path, count: int, published: int, what: str = "images"
) -> None:
    """Warn the caller of ``load`` if a dataset has not as many images as the published one.

    Args:
        title: title of the dataset.
        path: its file or folder.
        count: number of its images.
        published: number of the published images.
        what: which images these are, such as ``test images``.
    """
    if count != published:
        warnings.warn(
            f"{path} has {count:,} {what}, but {title} has {published:,}: "
            "results are not comparable with others",
            IncompleteDataWarning,
            stacklevel=3,
        )


def error_reason(error: BaseException) -> str:
    """Return the message of an error without numbers and paths, or its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def expand_user(path: str) -> Path:
    """Replace ``~`` or ``~user`` at the start of a path by the user's home folder.

    Raises:
        DataError: if that user's home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise DataError(
            f"{path}: the home folder {home} is unknown; write the folder's absolute path, or "
            f"./{home} for a folder of that name"
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder that may not exist yet.

    A folder without any write permission counts as read-only for the superuser too, so that shared
    data is never changed.
    """
    while not os.path.exists(folder):  # noqa: PTH110 (`Path.exists` raises in a forbidden folder)
        folder = folder.parent
    return folder.is_dir() and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
