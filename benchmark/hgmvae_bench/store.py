"""A results folder: records, the files that runs leave, and the grids that were run.

::

    results/
      grids/smoke.yaml                   the grid file, as it was last run
      records/<run key>.json             one record a run, written once
      records/<run key>.retry-1.json     the run done again after it failed; the newest counts
      records/<run key>.scores-1.json    metrics added later
      artifacts/<run key>/               weights and codes of the trained model

A record is the last thing that a run writes, whole or not at all: a temporary file, fsync, rename.
Whatever is killed at whatever moment, a folder holds only whole records, and what has no record is
done again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hgmvae_bench.errors import UserError
from hgmvae_bench.grid import Grid, load_grid
from hgmvae_bench.plugins import UnknownNameError
from hgmvae_bench.records import MetricValue, Record, ScoreRecord

Content = TypeVar("Content", Record, ScoreRecord)

_FILE_NAME = re.compile(r"(?P<key>.+?)(?:\.(?P<kind>retry|scores)-(?P<number>\d+))?\.json")
_HEAD = b'{"sha256": "%s", "content":\n'
_HEAD_LENGTH = len(_HEAD) - 2 + 64
_TAIL = b"\n}\n"
_TEMPORARY = ".tmp-"


class StoreError(UserError, RuntimeError):
    """A results folder that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class StoredRun:
    """A run as a results folder knows it.

    Attributes:
        record: the newest record of the run.
        sha256: of the record's content.
        metrics: the record's metrics and those added later.
    """

    record: Record
    sha256: str
    metrics: dict[str, MetricValue]


@dataclass(frozen=True)
class Store:
    """A results folder.

    Attributes:
        root: the folder; made when something is first written.
    """

    root: Path

    @cached_property
    def _records(self) -> Path:
        return self.root / "records"

    def runs(self) -> dict[str, StoredRun]:
        """Every recorded run by its key, with the metrics added later.

        Raises:
            StoreError: if a file is damaged, edited, or of an unknown schema version.
        """
        newest: dict[str, tuple[int, Path]] = {}
        scores: list[tuple[int, Path]] = []
        for path in self._files():
            match = _FILE_NAME.fullmatch(path.name)
            if match is None:
                raise StoreError(f"{path}: not a name that a record has; move it elsewhere")
            number = int(match["number"] or 0)
            if match["kind"] == "scores":
                scores.append((number, path))
            elif number >= newest.get(match["key"], (-1, path))[0]:
                newest[match["key"]] = (number, path)
        runs = {}
        for key, (_, path) in newest.items():
            record, sha256 = _read(path, Record)
            runs[key] = StoredRun(record, sha256, dict(record.metrics))
        for _, path in sorted(scores):
            score, _ = _read(path, ScoreRecord)
            run = runs.get(score.key)
            if run is not None and run.sha256 == score.record_sha256:
                run.metrics.update(score.metrics)
        return runs

    def add(self, record: Record) -> None:
        """Write the record of a finished run; an earlier one of the same run is kept beside it.

        Raises:
            StoreError: if it cannot be written; nothing is left half-written.
        """
        self._write(record.key, "retry", record)

    def add_scores(self, score: ScoreRecord) -> None:
        """Write metrics that were computed for a recorded run later on.

        Raises:
            StoreError: if they cannot be written; nothing is left half-written.
        """
        self._write(score.key, "scores", score)

    def artifacts(self, key: str) -> Path:
        """Folder of the files that a run left (it may not exist)."""
        return self.root / "artifacts" / key

    @contextmanager
    def writing_artifacts(self, key: str) -> Iterator[Path]:
        """A temporary folder that takes the place of the run's artifacts when the block ends.

        Raises:
            StoreError: if it cannot be made or moved.
        """
        target = self.artifacts(key)
        with _named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
            try:
                yield temporary
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def add_grid(self, grid: Grid) -> None:
        """Keep a copy of a grid file with its results, in place of an earlier one of that name.

        Records belong to settings, not to grids: another grid of the same name hides no result
        for good, it only asks for other tables.

        Raises:
            StoreError: if it cannot be written.
        """
        path = self.root / "grids" / f"{grid.spec.name}.yaml"
        with _named(path):
            write_atomically(path, grid.text.encode())

    def grid(self, name: str | None = None) -> Grid:
        """A grid that was run into this folder; the only one if no name is given.

        Raises:
            StoreError: if there is none, or several and no name.
            UnknownNameError: if none has that name.
        """
        names = sorted(path.stem for path in (self.root / "grids").glob("*.yaml"))
        if not names:
            raise StoreError(
                f"no results in {self.root}; fill it with "
                f"`hgmvae-bench run --grid smoke --results {self.root}`"
            )
        if name is None:
            if len(names) > 1:
                raise StoreError(
                    f"{self.root} holds the grids {', '.join(names)}; choose one with --grid"
                )
            name = names[0]
        if name not in names:
            raise UnknownNameError("grid of the results", name, names)
        return load_grid(str(self.root / "grids" / f"{name}.yaml"))

    def clean(self) -> None:
        """Remove what killed runs left half-written."""
        for folder in (self._records, self.root / "artifacts"):
            for path in folder.glob(f"{_TEMPORARY}*"):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files(self) -> Iterator[Path]:
        if self._records.is_dir():
            with os.scandir(self._records) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        yield Path(entry.path)

    def _write(self, key: str, kind: str, content: BaseModel) -> None:
        body = content.model_dump_json(indent=1).encode()
        head = _HEAD % hashlib.sha256(body).hexdigest().encode()
        path = self._records / f"{key}.json"
        with _named(path):
            number = 0
            while path.exists() or (kind == "scores" and number == 0):
                number += 1
                path = self._records / f"{key}.{kind}-{number}.json"
            write_atomically(path, head + body + _TAIL)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and durably: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, content_type: type[Content]) -> tuple[Content, str]:
    """A file's content and its hash.

    The hash covers the bytes of the content as they stand in the file, so that it can be checked
    without parsing twice.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    body = raw[_HEAD_LENGTH : -len(_TAIL)]
    sha256 = hashlib.sha256(body).hexdigest()
    if raw != _HEAD % sha256.encode() + body + _TAIL:
        raise StoreError(
            f"{path}: truncated or edited (its content does not match its hash); "
            "move it elsewhere, and the run will be done again"
        )
    try:
        return content_type.model_validate_json(body), sha256
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise StoreError(
            f"{path}: not a record that this version reads: {where}: {fault['msg']}"
        ) from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error
