"""Results that lie elsewhere: a URL such as ``s3://bucket/folder`` in place of a results folder.

A command works on a copy of the results below the user's cache folder. It brings the records that
the copy lacks when it starts, sends each run when it is recorded, and what else was made when it
ends. Records are written once and never edited, so the copies of any number of machines can only
lack records, not contradict each other: a record goes up with a conditional write, and where
another machine has stored that run first, its record counts here too. A write is whole or not at
all, since an object store shows an object only when all of it has arrived.

The files that a run left (its artifacts) go up before its record, and come down when asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from hgmvae_bench.storage.record_file import RecordFileError, parse_file_name
from hgmvae_bench.utils.atomic_files import LocalFiles
from hgmvae_bench.utils.errors import UserError

ORIGIN = "remote.url"
"""File of a copy that says what it is a copy of."""

IN_STEP = "remote.json"
"""File of a copy that says in which version its rewritten files are as they are there."""

RECORDS = "records"
WRITTEN_ONCE = (RECORDS, "controls")
REWRITTEN = ("grids", "tables", "figures", "logs")
ARTIFACTS = "artifacts"

# Objects that are read at once.
AT_ONCE = 200


class RemoteError(UserError, RuntimeError):
    """Results elsewhere that cannot be read or written; the message names them."""


def is_url(results: str) -> bool:
    """Whether these results lie elsewhere."""
    return "://" in results


@dataclass
class RemoteResults:
    """Results at a URL, and the copy of them on this machine.

    Attributes:
        url: of the results.
        root: of the copy.
    """

    url: str
    root: Path
    owner: str = ""
    _present: set[str] | None = None  # up there, as far as is known

    @classmethod
    def at(cls, url: str) -> RemoteResults:
        """The results at ``url``, with their copy in the user's cache folder."""
        url = url.rstrip("/")
        readable = re.sub(r"\W+", "-", url).strip("-")[-60:]
        name = f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return cls(url, user_cache_path("hgmvae-bench") / "results" / name)

    @classmethod
    def of(cls, root: Path, owner: str = "") -> RemoteResults | None:
        """What the folder ``root`` is a copy of, if it is one; ``owner`` as of `LocalFiles`."""
        try:
            return cls((root / ORIGIN).read_text(encoding="utf-8"), root, owner)
        except FileNotFoundError:
            return None

    def pull(self) -> None:
        """Bring what the copy lacks, artifacts excepted.

        What has been rewritten here and not been sent, since that was refused or the process was
        killed, stays as it is here.

        Raises:
            RemoteError: if the results cannot be read.
        """
        files = LocalFiles(self.root)
        files.write(ORIGIN, self.url.encode())
        with self._named():
            fs, base = self._open()
            present = self._look(fs, base)
            known = {name: v for name, v in self._in_step().items() if name in present}
            lacking = [
                name
                for name in sorted(present)
                if name.startswith((*WRITTEN_ONCE, *REWRITTEN))
                and files.version(name) in (None, known.get(name))
            ]
            for start in range(0, len(lacking), AT_ONCE):
                some = lacking[start : start + AT_ONCE]
                contents = fs.cat([f"{base}/{name}" for name in some])
                for name in some:
                    files.write(name, contents[f"{base}/{name}"])
                    if name.startswith(REWRITTEN):
                        known[name] = str(files.version(name))
            self._keep(known)

    def fetch_artifacts(self, key: str) -> None:
        """Bring the files that a run left, if they are there.

        Raises:
            RemoteError: if they cannot be read.
        """
        with self._named():
            fs, base = self._open()
            paths = _find(fs, f"{base}/{ARTIFACTS}/{key}")
            if not paths:
                return
            temporary = LocalFiles(self.root, self.owner).temporary_folder(ARTIFACTS)
            try:
                for path in paths:
                    (temporary / path.rpartition("/")[2]).write_bytes(fs.cat_file(path))
                temporary.rename(self.root / ARTIFACTS / key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def push_records(self) -> None:
        """Send records that are not there, each after the files that its run left.

        Raises:
            RemoteError: if they cannot be written.
        """
        with self._named():
            fs, base = self._open()
            present = self._look(fs, base) if self._present is None else self._present
            for name, path in self._local(WRITTEN_ONCE):
                if name not in present:
                    # What is no record stays here, for whoever reads the copy to name.
                    with suppress(RecordFileError):
                        self._push_record(fs, base, name, path, present)
                        present.add(name)

    def push(self) -> None:
        """Send everything that is not there, or has changed.

        Raises:
            RemoteError: if it cannot be written.
        """
        self._present = None
        self.push_records()
        with self._named():
            fs, base = self._open()
            known, files = self._in_step(), LocalFiles(self.root)
            try:
                for name, path in self._local(REWRITTEN):
                    if known.get(name) != (version := str(files.version(name))):
                        fs.pipe_file(f"{base}/{name}", path.read_bytes())
                        known[name] = version
            finally:
                self._keep(known)

    def _push_record(self, fs: Any, base: str, name: str, path: Path, present: set[str]) -> None:
        """Send a record that was not there, or take that of another machine that was first."""
        there, (key, kind, _) = f"{base}/{name}", parse_file_name(path.name)
        # Asked anew, so that what belongs to the other's record is not replaced.
        if not fs.exists(there):
            self._push_artifacts(fs, base, key, present)
            if _create(fs, there, path.read_bytes()):
                return
        theirs = fs.cat_file(there)
        if theirs == path.read_bytes():
            return
        LocalFiles(self.root).write(name, theirs)
        if path.parent.name == RECORDS and kind == "retry":
            # Ours are of another training; theirs come when they are asked for.
            shutil.rmtree(self.root / ARTIFACTS / key, ignore_errors=True)

    def _push_artifacts(self, fs: Any, base: str, key: str, present: set[str]) -> None:
        for path in _files(self.root / ARTIFACTS / key):
            name = path.relative_to(self.root).as_posix()
            if name not in present:
                fs.pipe_file(f"{base}/{name}", path.read_bytes())
                present.add(name)

    def _in_step(self) -> dict[str, str]:
        """The versions in which rewritten files have been sent or brought."""
        try:
            versions: dict[str, str] = json.loads((self.root / IN_STEP).read_bytes())
        except FileNotFoundError:
            return {}
        return versions

    def _keep(self, versions: dict[str, str]) -> None:
        LocalFiles(self.root).write(IN_STEP, json.dumps(versions, indent=1).encode())

    def _look(self, fs: Any, base: str) -> set[str]:
        """Names of everything that is there now."""
        self._present = {path.removeprefix(f"{base}/") for path in _find(fs, base)}
        return self._present

    def _local(self, folders: Iterable[str]) -> Iterator[tuple[str, Path]]:
        for folder in folders:
            for path in _files(self.root / folder):
                yield path.relative_to(self.root).as_posix(), path

    def _open(self) -> tuple[Any, str]:
        """The file system and the path in it, listed anew."""
        import fsspec

        try:
            fs, base = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise RemoteError(
                f"{self.url} needs a package that is not here: {error}; "
                "python -m pip install 'hgmvae-bench[s3]' brings the one for S3"
            ) from error
        fs.invalidate_cache()
        return fs, base.rstrip("/")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RemoteError:
            raise
        except Exception as error:  # of as many kinds as there are file systems
            raise RemoteError(
                f"{self.url}: {type(error).__name__}: {error}; what is finished is kept in "
                f"{self.root} and goes up with the next command"
            ) from error


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A folder to work on in place of the results at ``url``, brought at first and sent at last.

    Raises:
        RemoteError: if the results cannot be read or written.
    """
    remote = RemoteResults.at(url)
    remote.pull()
    try:
        yield remote.root
    finally:
        remote.push()


def _find(fs: Any, folder: str) -> list[str]:
    """Every file below a folder, none if it is not there."""
    try:
        return [str(path) for path in fs.find(folder)]
    except FileNotFoundError:
        return []


def _create(fs: Any, path: str, content: bytes) -> bool:
    """Write a new object; False if it is there.

    Of two machines that do so at one time, one gets True where the server knows conditional writes
    (S3 and Google Cloud do); elsewhere the later one overwrites an equal record.
    """
    try:
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except OSError:
        # Refused by a precondition, in as many words as there are servers.
        fs.invalidate_cache()
        if not fs.exists(path):
            raise
        return False
    return True


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder that are not half-written."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            yield path
