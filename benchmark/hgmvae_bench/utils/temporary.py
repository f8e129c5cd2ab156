"""Temporary files that the next start removes if this process is killed.

Each process has a folder below ``hgmvae-bench/tmp`` in the user's cache folder, with a lock file
beside it. The operating system releases the lock when the process ends, however it ends. Every
start removes the folders whose lock is free. Files that are to be renamed need a temporary folder
on the same disk, which `temporary_folder` makes.
"""

from __future__ import annotations

import multiprocessing.util
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

if TYPE_CHECKING:
    from filelock import FileLock

MAX_SOCKET_PATH = 104
"""Maximum length of the path of a Unix socket, the shortest of all systems (macOS)."""

SOCKET_NAME_LENGTH = len("/pymp-12345678/listener-12345678")

CACHE_TEMPORARY = ".tmp"
"""Folder of temporary folders within the cache of a results folder."""

_folders: dict[int, tuple[Path, FileLock]] = {}
"""Folder and lock by process id, because a forked child has its own folder.

The child also keeps its parent's lock here. Deleting the object would release the lock for both.
"""


def temporary_root() -> Path:
    """Return the folder of all temporary folders."""
    return user_cache_path("hgmvae-bench") / "tmp"


def process_folder() -> Path:
    """Return this process's temporary folder, which is removed when the process ends.

    The first call also removes the folders of processes that were killed.

    Raises:
        OSError: if the folder cannot be made.
    """
    pid = os.getpid()
    if pid not in _folders:
        folder, lock = _create(temporary_root())
        _folders[pid] = folder, lock
        # After multiprocessing's own clean-up of its folder, which has the priority -100.
        multiprocessing.util.Finalize(None, _remove, (folder, lock), exitpriority=-200)
    return _folders[pid][0]


@contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """Make a folder below ``root`` for a block.

    The next one below the same root removes it if this process is killed.

    Raises:
        OSError: if the folder cannot be made.
    """
    folder, lock = _create(root)
    try:
        yield folder
    finally:
        _remove(folder, lock)
        with suppress(OSError):  # Another process may use it.
            root.rmdir()


def remove_abandoned(root: Path) -> None:
    """Remove the folders below ``root``, which may not exist, whose process has ended."""
    from filelock import FileLock, Timeout

    for folder in root.glob("*-*"):
        if not folder.is_dir():
            continue
        path = folder.with_suffix(".lock")
        lock = FileLock(path)
        with suppress(OSError, Timeout):
            lock.acquire(timeout=0)
            try:
                shutil.rmtree(folder, ignore_errors=True)
                path.unlink(missing_ok=True)
            finally:
                lock.release()


def redirect_multiprocessing() -> None:
    """Let multiprocessing make the folder of its sockets below `process_folder`.

    By default it uses the system's temporary folder, where ``pymp-*`` stays if the process is
    killed. The folder is not changed if it has been chosen, or if the path would be too long for a
    Unix socket.
    """
    try:
        folder = process_folder()
    except OSError:  # The cache folder cannot be written; nothing else depends on it.
        return
    if len(os.fsencode(folder)) + SOCKET_NAME_LENGTH > MAX_SOCKET_PATH:
        return
    default, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = default


def _create(root: Path) -> tuple[Path, FileLock]:
    """Remove abandoned folders below ``root`` and make a new one."""
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    folder = root / f"{os.getpid()}-{secrets.token_hex(4)}"
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire()  # Before the folder exists, so that no other start takes it for abandoned.
    folder.mkdir(parents=True)
    return folder, lock


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
