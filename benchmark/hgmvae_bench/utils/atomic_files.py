"""Where a results folder's files lie: the few operations that a store needs of a file system.

Everything above this seam speaks of paths relative to the folder, with ``/`` between their parts.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from hgmvae_bench.utils.errors import UserError

T = TypeVar("T")

TEMPORARY = ".tmp-"

MOST_TRIES = 5

# What file systems without hard links answer to an attempt to make one.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class OutputError(UserError, OSError):
    """A file that cannot be written where the user wants it; the message names it."""


class FileVersion(NamedTuple):
    """A file of a folder.

    Attributes:
        name: within its folder.
        version: changes whenever the file does.
    """

    name: str
    version: str


class Files(Protocol):
    """A folder of files. Every operation raises ``OSError`` where it is refused."""

    def scan(self, folder: str) -> Iterator[FileVersion]:
        """Files of a folder, in no order; none if there is no such folder. Hidden ones are left."""

    def version(self, path: str) -> str | None:
        """The version of one file, None if it is not there."""

    def read(self, path: str) -> bytes:
        """The content of a file."""

    def write(self, path: str, content: bytes) -> None:
        """Write a file, whole or not at all, in place of what is there."""

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file, whole or not at all; False, and nothing done, if it is there."""

    def move(self, path: str, target: str) -> None:
        """Rename a file."""

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine, or of one that is mounted here.

    Attributes:
        root: the folder; made when something is first written.
        owner: enters the names of temporary files, so that what a killed process left can be told
            from what another is writing.
    """

    root: Path
    owner: str = ""

    def scan(self, folder: str) -> Iterator[FileVersion]:
        """Files of a folder, in no order; none if there is no such folder. Hidden ones are left."""
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    # Gone since it was listed: another process moved it.
                    with suppress(FileNotFoundError):
                        yield FileVersion(entry.name, _version(entry.stat()))

    def version(self, path: str) -> str | None:
        """The version of one file, None if it is not there."""
        try:
            return _version(os.stat(self.root / path))  # noqa: PTH116
        except FileNotFoundError:
            return None

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with open(f"{self.root}/{path}", "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()

    def write(self, path: str, content: bytes) -> None:
        """Write a file, whole, durably or not at all, in place of what is there."""
        target = self.root / path
        self._placed(target, content, lambda temporary: temporary.replace(target))

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file, whole, durably or not at all; False, and nothing done, if it is there.

        Of two that create one file at one time, one gets True.
        """
        target = self.root / path

        def link(temporary: Path) -> bool:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if target.exists():
                    return False
                temporary.replace(target)
            return True

        return self._placed(target, content, link)

    def move(self, path: str, target: str) -> None:
        """Rename a file."""
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).replace(self.root / target)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        (self.root / path).unlink(missing_ok=True)

    def temporary_folder(self, parent: str) -> Path:
        """A new hidden folder to fill and rename."""
        folder = self.root / parent
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{self.owner}-", dir=folder))

    def remove_temporaries(self, folder: str, living: set[str]) -> None:
        """Remove what killed processes left half-written; what ``living`` owners write stays."""
        kept = tuple(f"{TEMPORARY}{owner}-" for owner in living if owner)
        for path in (self.root / folder).glob(f"{TEMPORARY}*"):
            if not path.name.startswith(kept):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _placed(self, target: Path, content: bytes, place: Callable[[Path], T]) -> T:
        """What ``place`` returns, given a file that it is to bring to ``target``.

        Until a process has given a sign of life, another may take what it writes for the leavings
        of a dead one and sweep it away: then it is written again.
        """
        for _ in range(MOST_TRIES - 1):
            with suppress(FileNotFoundError), self._temporary(target, content) as temporary:
                return place(temporary)
        with self._temporary(target, content) as temporary:
            return place(temporary)

    @contextmanager
    def _temporary(self, target: Path, content: bytes) -> Iterator[Path]:
        """A file beside ``target`` that holds ``content`` durably, until the block ends."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{self.owner}-{uuid.uuid4().hex}")
        try:
            # Not tempfile's mkstemp, which leaves a file that only its owner can read.
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and durably: temporary file, fsync, rename."""
    LocalFiles(path.parent).write(path.name, content)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user has named, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _version(state: os.stat_result) -> str:
    # The time of the last change of the inode cannot be set by hand, unlike that of the content.
    return f"{state.st_size:x}-{state.st_mtime_ns:x}-{state.st_ctime_ns:x}-{state.st_ino:x}"


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder last; a no-op where folders cannot be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
