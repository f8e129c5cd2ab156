"""Remote results: a URL such as ``s3://bucket/folder`` instead of a results folder.

A command works on a local copy in the user's cache folder. At its start it downloads the records
that the copy lacks, it uploads each run when the run is recorded, and at its end it uploads
everything else. Records are written once and never edited, so two copies may lack records but
cannot contradict each other. Records are uploaded with a conditional write: if another machine has
uploaded the same run first, its record counts here too. Object stores show an object only when it
is complete, so no reader sees a partial file.

The artifacts of a run are uploaded before its record, and downloaded when a command needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from platformdirs import user_cache_path

from hgmvae_bench.storage.record_file import RecordFileError, parse_file_name
from hgmvae_bench.storage.record_folder import ARTIFACTS, CONTROLS, RECORDS
from hgmvae_bench.utils.atomic_files import LocalFiles, complete_files
from hgmvae_bench.utils.errors import UserError

URL_FILE = "remote.url"
"""File of a local copy that holds the URL."""

SYNC_STATE_FILE = "remote.json"
"""File of a local copy that holds the last synchronized version of each mutable file."""

IMMUTABLE_FOLDERS = (RECORDS, CONTROLS)
MUTABLE_FOLDERS = ("grids", "tables", "figures", "logs")
SYNCED_FOLDERS = (*IMMUTABLE_FOLDERS, *MUTABLE_FOLDERS, ARTIFACTS)

# Objects in one download request.
DOWNLOAD_BATCH_SIZE = 200


class RemoteError(UserError, RuntimeError):
    """Remote results cannot be read or written; the message holds the URL."""


def is_url(results: str) -> bool:
    """Whether ``results`` is a URL and not a folder."""
    return "://" in results


@dataclass
class RemoteResults:
    """Results at a URL and their local copy.

    Attributes:
        url: URL of the results.
        root: folder of the local copy.
        owner: id of the writing process, as in `LocalFiles`.
        remote_files: names of the remote files, as last listed; None if they have to be listed.
    """

    url: str
    root: Path
    owner: str = ""
    remote_files: set[str] | None = None

    @classmethod
    def at(cls, url: str) -> RemoteResults:
        """Results at ``url`` with a local copy in the user's cache folder."""
        url = url.rstrip("/")
        readable = re.sub(r"\W+", "-", url).strip("-")[-60:]
        name = f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return cls(url, user_cache_path("hgmvae-bench") / "results" / name)

    @classmethod
    def of(cls, root: Path, owner: str = "") -> RemoteResults | None:
        """Remote results that ``root`` is the local copy of; None if it is an ordinary folder."""
        try:
            return cls((root / URL_FILE).read_text(encoding="utf-8"), root, owner)
        except FileNotFoundError:
            return None

    def pull(self) -> None:
        """Download the files that the local copy lacks, except artifacts.

        Mutable files with local changes that have not been uploaded are not overwritten.

        Raises:
            RemoteError: if the results cannot be read.
        """
        files = LocalFiles(self.root)
        self._write(URL_FILE, self.url.encode())
        with self._as_remote_errors():
            fs, base = self._open()
            present = self._list_remote(fs, base)
            known = {name: v for name, v in self._read_sync_state().items() if name in present}
            missing = [
                name
                for name in sorted(present)
                if _top_folder(name) != ARTIFACTS and files.version(name) in (None, known.get(name))
            ]
            for start in range(0, len(missing), DOWNLOAD_BATCH_SIZE):
                batch = missing[start : start + DOWNLOAD_BATCH_SIZE]
                contents = fs.cat([f"{base}/{name}" for name in batch])
                for name in batch:
                    self._write(name, contents[f"{base}/{name}"])
                    if _top_folder(name) in MUTABLE_FOLDERS:
                        known[name] = str(files.version(name))
            self._write_sync_state(known)

    def fetch_artifacts(self, key: str) -> None:
        """Download the artifacts of a run, if there are any.

        Raises:
            RemoteError: if they cannot be read.
        """
        with self._as_remote_errors():
            fs, base = self._open()
            paths = _find(fs, f"{base}/{ARTIFACTS}/{key}")
            if not paths:
                return
            temporary = LocalFiles(self.root, self.owner).make_temporary_folder(ARTIFACTS)
            try:
                for path in paths:
                    file = temporary / path.rpartition("/")[2]
                    self._write(file.relative_to(self.root).as_posix(), fs.cat_file(path))
                temporary.rename(self.root / ARTIFACTS / key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def push_records(self) -> None:
        """Upload new records, each after the artifacts of its run.

        Raises:
            RemoteError: if they cannot be written.
        """
        with self._as_remote_errors():
            fs, base = self._open()
            present = (
                self._list_remote(fs, base) if self.remote_files is None else self.remote_files
            )
            for name, path in self._local_files(IMMUTABLE_FOLDERS):
                if name not in present:
                    # Other files stay here; `Store.runs` reports them.
                    with suppress(RecordFileError):
                        self._push_record(fs, base, name, path, present)
                        present.add(name)

    def push(self) -> None:
        """Upload all new and changed files.

        Raises:
            RemoteError: if they cannot be written.
        """
        self.remote_files = None
        self.push_records()
        with self._as_remote_errors():
            fs, base = self._open()
            known, files = self._read_sync_state(), LocalFiles(self.root)
            try:
                for name, path in self._local_files(MUTABLE_FOLDERS):
                    if known.get(name) != (version := str(files.version(name))):
                        fs.pipe_file(f"{base}/{name}", path.read_bytes())
                        known[name] = version
            finally:
                self._write_sync_state(known)

    def _push_record(self, fs: Any, base: str, name: str, path: Path, present: set[str]) -> None:
        """Upload a record, or replace it by that of another machine that was first."""
        remote_path, (key, kind, _) = f"{base}/{name}", parse_file_name(path.name)
        # The listing may be old; another machine's artifacts must not be overwritten.
        if not fs.exists(remote_path):
            self._push_artifacts(fs, base, key, present)
            if _create(fs, remote_path, path.read_bytes()):
                return
        content = fs.cat_file(remote_path)
        if content == path.read_bytes():
            return
        self._write(name, content)
        if path.parent.name == RECORDS and kind == "retry":
            # The local artifacts belong to the replaced record; those of the other machine are
            # downloaded when they are needed.
            shutil.rmtree(self.root / ARTIFACTS / key, ignore_errors=True)

    def _push_artifacts(self, fs: Any, base: str, key: str, present: set[str]) -> None:
        for path in complete_files(self.root / ARTIFACTS / key):
            name = path.relative_to(self.root).as_posix()
            if name not in present:
                fs.pipe_file(f"{base}/{name}", path.read_bytes())
                present.add(name)

    def _read_sync_state(self) -> dict[str, str]:
        """Last synchronized version of each mutable file, by name."""
        try:
            versions: dict[str, str] = json.loads((self.root / SYNC_STATE_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        return versions

    def _write_sync_state(self, versions: dict[str, str]) -> None:
        self._write(SYNC_STATE_FILE, json.dumps(versions, indent=1).encode())

    def _write(self, name: str, content: bytes) -> None:
        """Write a file of the local copy.

        Raises:
            RemoteError: if it cannot be written.
        """
        try:
            LocalFiles(self.root).write(name, content)
        except OSError as error:
            raise RemoteError(f"{self.root / name}: cannot be written: {error.strerror}") from error

    def _list_remote(self, fs: Any, base: str) -> set[str]:
        """List the names of all remote files again, except files that no results folder has.

        An object store accepts any name, such as ``records/../../file``, which would be outside
        the local copy.
        """
        names = {path.removeprefix(f"{base}/") for path in _find(fs, base)}
        self.remote_files = {
            name
            for name in names
            if _top_folder(name) in SYNCED_FOLDERS and ".." not in PurePosixPath(name).parts
        }
        return self.remote_files

    def _local_files(self, folders: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Name and path of the complete files in these folders of the local copy."""
        for folder in folders:
            for path in complete_files(self.root / folder):
                yield path.relative_to(self.root).as_posix(), path

    def _open(self) -> tuple[Any, str]:
        """File system (fsspec) of the URL, with empty caches, and the path in it."""
        import fsspec

        try:
            fs, base = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise RemoteError(
                f"{self.url} needs a package that is not installed: {error}; "
                "for S3, run python -m pip install 'hgmvae-bench[s3]'"
            ) from error
        fs.invalidate_cache()
        return fs, base.rstrip("/")

    @contextmanager
    def _as_remote_errors(self) -> Iterator[None]:
        """Turn every exception into a `RemoteError` that holds the URL."""
        try:
            yield
        except RemoteError:
            raise
        except Exception as error:  # Each fsspec file system raises exceptions of its own.
            raise RemoteError(
                f"{self.url}: {type(error).__name__}: {error}; finished runs are kept in "
                f"{self.root}, and the next command uploads them"
            ) from error


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Local copy of the results at ``url``, downloaded first and uploaded when the block ends.

    Raises:
        RemoteError: if the results cannot be read or written.
    """
    remote = RemoteResults.at(url)
    remote.pull()
    try:
        yield remote.root
    finally:
        remote.push()


@contextmanager
def results_folder(results: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the results folder; for a URL a `local_copy`.

    Raises:
        RemoteError: if the results at the URL cannot be read or written.
    """
    if not is_url(str(results)):
        yield Path(results)
        return
    with local_copy(str(results)) as folder:
        yield folder


def _find(fs: Any, folder: str) -> list[str]:
    """List every file below a folder; none if it does not exist."""
    try:
        return [str(path) for path in fs.find(folder)]
    except FileNotFoundError:
        return []


def _create(fs: Any, path: str, content: bytes) -> bool:
    """Create an object; False if it exists.

    If two machines do so at once, one of them gets False, provided that the server supports
    conditional writes (S3 and Google Cloud do). Otherwise the later write wins.
    """
    try:
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except OSError:
        # Servers report a failed precondition in different ways.
        fs.invalidate_cache()
        if not fs.exists(path):
            raise
        return False
    return True


def _top_folder(name: str) -> str:
    return name.partition("/")[0]
