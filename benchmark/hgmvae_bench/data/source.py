"""What can be said about a dataset's files: where they come from and if they are whole.

Everything here is words and small records; it imports nothing heavy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hgmvae_bench.data import DataError

State = Literal["complete", "missing", "damaged"]


class Progress(Protocol):
    """Is told how far a long task is."""

    def __call__(self, task: str, done: int, total: int | None) -> None:
        """Report ``done`` of ``total`` bytes or images (None: not known) of ``task``."""


def no_progress(task: str, done: int, total: int | None) -> None:
    """A progress that tells nobody."""


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from, for messages and documentation.

    Attributes:
        name: registered name.
        address: where it is published; downloads may come from mirrors.
        layout: the files below the data folder, as a reader would lay them out by hand.
        size: of the download, for people: ``12 MB``.
    """

    name: str
    address: str
    layout: str
    size: str

    def advice(self, root: Path) -> str:
        """How to get the data to where it is looked for."""
        return (
            f"`hgmvae-bench data fetch {self.name} --data {root}` downloads it ({self.size}, "
            f"{self.address}); by hand: {self.layout}, below {root}; "
            "--data or HGMVAE_BENCH_DATA names another folder"
        )


@dataclass(frozen=True)
class FileStatus:
    """What was found at one place.

    Attributes:
        path: a file, or the folder that holds a set of images.
        state: ``complete``, ``missing`` or ``damaged``.
        detail: what was verified, or what is wrong.
    """

    path: Path
    state: State
    detail: str


class DataFileError(Exception):
    """A file that is not whole, as found while reading it."""

    def __init__(self, path: Path, state: State, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.file = FileStatus(path, state, detail)


@dataclass(frozen=True)
class DatasetReport:
    """What `check` found out about one dataset.

    Attributes:
        title: the dataset's.
        files: every place that was looked at.
        advice: what to do if it is not whole.
    """

    title: str
    files: tuple[FileStatus, ...]
    advice: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything is there and undamaged."""
        return all(file.state == "complete" for file in self.files)


def data_error(title: str, file: FileStatus, source: Source, root: Path) -> DataError:
    """The error for data that cannot be loaded or completed because of one file."""
    cure = "" if file.state == "missing" else "move it away, then get it anew: "
    return DataError(f"{title}: {file.path}: {file.detail}; {cure}{source.advice(root)}")


def reason(error: BaseException) -> str:
    """An error in the words of its message alone, or of its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first.

    A folder whose owner took every write permission away counts as read-only for the superuser
    too, who could write there: shared data stays as it is.
    """
    while not os.path.exists(folder):  # noqa: PTH110 (`Path.exists` raises in a forbidden folder)
        folder = folder.parent
    return folder.is_dir() and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
