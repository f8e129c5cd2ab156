"""Atomic file operations of a results folder.

Paths are relative to the folder, with ``/`` between their parts.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from hgmvae_bench.utils.errors import UserError

T = TypeVar("T")

TEMPORARY_PREFIX = ".tmp-"

MAX_ATTEMPTS = 5

# Errors of file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class OutputError(UserError, OSError):
    """A file named by the user that cannot be written; the message names it."""


class NotAFileError(OSError):
    """A pipe, device or folder where a file was expected."""


class FileVersion(NamedTuple):
    """Name and version of a file.

    Attributes:
        name: name within its folder.
        version: text that changes whenever the file does.
    """

    name: str
    version: str


@dataclass(frozen=True)
class LocalFiles:
    """A local or mounted folder. Operations raise ``OSError`` if the file system refuses them.

    Attributes:
        root: the folder, which the first write creates.
        owner: identifies this process in the names of temporary files. It distinguishes the files
            that a killed process left from those that another process is writing.
    """

    root: Path
    owner: str = ""

    def scan(self, folder: str) -> Iterator[FileVersion]:
        """Iterate over the files of a folder without hidden ones, in no order.

        A folder that does not exist has no files.
        """
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    # Another process may have moved the file since it was listed.
                    with suppress(FileNotFoundError):
                        yield FileVersion(entry.name, _version(entry.stat()))

    def version(self, path: str) -> str | None:
        """Return the version of a file, or None if it does not exist."""
        try:
            return _version(os.stat(self.root / path))  # noqa: PTH116
        except FileNotFoundError:
            return None

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        with open(f"{self.root}/{path}", "rb", buffering=0, opener=_open_file) as file:
            return file.readall()

    def write(self, path: str, content: bytes) -> None:
        """Write a file atomically and durably, replacing an existing one."""
        target = self.root / path
        self._write_then(target, content, lambda temporary: temporary.replace(target))

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file atomically and durably; return False if it already exists.

        If two processes create the same file at the same time, exactly one gets True. On file
        systems without hard links, such as exFAT, both may: there only one process at a time can
        work on a results folder.
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

        return self._write_then(target, content, link)

    def move(self, path: str, target: str) -> None:
        """Rename a file."""
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).replace(self.root / target)

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        (self.root / path).unlink(missing_ok=True)

    def make_temporary_folder(self, parent: str) -> Path:
        """Create a hidden folder, to be filled and then renamed."""
        folder = self.root / parent
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{self.owner}-", dir=folder))

    def remove_temporaries(self, folder: str, living: set[str]) -> None:
        """Remove temporary files of killed processes; those of ``living`` owners are kept."""
        kept = tuple(f"{TEMPORARY_PREFIX}{owner}-" for owner in living if owner)
        for path in (self.root / folder).glob(f"{TEMPORARY_PREFIX}*"):
            if not path.name.startswith(kept):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _write_then(self, target: Path, content: bytes, place: Callable[[Path], T]) -> T:
        """Write a temporary file beside ``target`` and return the result of ``place`` for it.

        Until this process is known to be alive, another may remove the file as left by a killed
        process. Then it is written again.
        """
        for _ in range(MAX_ATTEMPTS - 1):
            with suppress(FileNotFoundError), self.temporary_file(target, content) as temporary:
                return place(temporary)
        with self.temporary_file(target, content) as temporary:
            return place(temporary)

    @contextmanager
    def temporary_file(self, target: Path, content: bytes) -> Iterator[Path]:
        """Write ``content`` durably to a temporary file beside ``target``; remove it at the end."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{self.owner}-{uuid.uuid4().hex}")
        try:
            # tempfile.mkstemp makes files that only their owner can read.
            write_durably(temporary, content)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and flush it to disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: temporary file, fsync, rename."""
    LocalFiles(path.parent).write(path.name, content)


def write_output(path: Path, content: bytes) -> None:
    """Write a file named by the user atomically.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _open_file(path: str, flags: int) -> int:
    """Open a regular file.

    Raises:
        NotAFileError: for pipes and devices, which may never end.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer. Windows has neither.
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotAFileError(errno.EINVAL, "not a regular file")
    return handle


def _version(state: os.stat_result) -> str:
    # Unlike mtime, ctime cannot be set by users.
    return f"{state.st_size:x}-{state.st_mtime_ns:x}-{state.st_ctime_ns:x}-{state.st_ino:x}"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; a no-op where folders cannot be opened (Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def complete_files(folder: Path) -> Iterator[Path]:
    """Iterate over the files below a folder, without hidden ones and those in hidden folders."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            yield path
