"""Reading the record files of a results folder, and moving damaged ones aside."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hgmvae_bench.storage.record_file import (
    Content,
    Kind,
    RecordFile,
    RecordFileError,
    StoreError,
    as_store_errors,
    parse_file,
    parse_file_name,
)
from hgmvae_bench.storage.schema import ControlRecord, Record, ScoreRecord
from hgmvae_bench.storage.stored_run import StoredRun, merge_metrics
from hgmvae_bench.utils.atomic_files import LocalFiles, NotAFileError
from hgmvae_bench.utils.text import first_few

RECORDS = "records"
CONTROLS = "controls"
ARTIFACTS = "artifacts"
DAMAGED = "damaged"

OnInvalid = Literal["raise", "warn"]
"""Treatment of invalid record files: raise a `StoreError`, or skip them with a warning."""

_MAX_LISTED_FILES = 10

logger = logging.getLogger(__name__)


@dataclass
class RecordFolder:
    """Contents of the folder of records, in no particular order.

    Attributes:
        records: valid records.
        scores: valid score records.
        errors: invalid files, by name.
    """

    records: list[RecordFile[Record]] = field(default_factory=list)
    scores: list[RecordFile[ScoreRecord]] = field(default_factory=list)
    errors: dict[str, RecordFileError] = field(default_factory=dict)

    def runs(self) -> dict[str, StoredRun]:
        """Runs by key, without those whose newest record is invalid."""
        newest: dict[str, RecordFile[Record]] = {}
        for file in self.records:
            key, _, number = file.name
            if key not in newest or number > newest[key].name.number:
                newest[key] = file
        for key, number in self._invalid_records():
            if key in newest and number > newest[key].name.number:
                del newest[key]
        runs = {
            key: StoredRun(file.content, file.sha256, file.content.metrics, file.name.number)
            for key, file in newest.items()
        }
        for score in sorted(self.scores, key=lambda file: file.name.number):
            if run := runs.get(score.name.key):
                runs[score.name.key] = _with_scores(run, score)
        return runs

    def _invalid_records(self) -> Iterator[tuple[str, int]]:
        """Key and number of invalid records that have a valid name."""
        for name in self.errors:
            with suppress(RecordFileError):
                key, kind, number = parse_file_name(name)
                if kind == "retry":
                    yield key, number


def _with_scores(run: StoredRun, score: RecordFile[ScoreRecord]) -> StoredRun:
    """The run with the metrics of a score record, if they belong to its newest record."""
    metrics = run.metrics
    if score.content.record_sha256 == run.sha256:
        metrics = merge_metrics(metrics, score.content.metrics)
    return StoredRun(run.record, run.sha256, metrics, run.retries, score.name.number)


def read_records(files: LocalFiles) -> RecordFolder:
    """Read the folder of records.

    Raises:
        StoreError: if a file cannot be read.
    """
    contents = RecordFolder()
    for name in _names(files, RECORDS):
        try:
            if parse_file_name(name).kind == "scores":
                contents.scores.append(read_file(files, RECORDS, name, ScoreRecord))
            else:
                contents.records.append(read_file(files, RECORDS, name, Record))
        except FileNotFoundError:  # Another process has moved it since it was listed.
            continue
        except RecordFileError as error:
            contents.errors[name] = error
    return contents


def read_controls(
    files: LocalFiles,
) -> tuple[list[RecordFile[ControlRecord]], dict[str, RecordFileError]]:
    """Read the folder of controls: valid records by number, and errors by file name.

    Raises:
        StoreError: if a file cannot be read.
    """
    records, errors = [], {}
    for name in _names(files, CONTROLS):
        try:
            records.append(read_file(files, CONTROLS, name, ControlRecord))
        except FileNotFoundError:
            continue
        except RecordFileError as error:
            errors[name] = error
    return sorted(records, key=lambda file: file.name.number), errors


def read_file(
    files: LocalFiles, folder: str, name: str, content_type: type[Content]
) -> RecordFile[Content]:
    """Read one record file.

    Raises:
        RecordFileError: if it is invalid.
        StoreError: if it cannot be read.
        FileNotFoundError: if it is gone.
    """
    not_a_file = None
    with as_store_errors(files.root / folder / name, "read", may_be_gone=True):
        try:
            raw = files.read(f"{folder}/{name}")
        except NotAFileError as error:
            not_a_file = error
    if not_a_file is not None:
        raise RecordFileError("not a regular file") from not_a_file
    return parse_file(name, raw, content_type)


def record_file_names(files: LocalFiles) -> dict[str, list[str]]:
    """File names of every run by key: records first, then scores, each in their order."""
    by_key: dict[str, list[tuple[Kind, int, str]]] = {}
    for name in _names(files, RECORDS):
        with suppress(RecordFileError):
            key, kind, number = parse_file_name(name)
            by_key.setdefault(key, []).append((kind, number, name))
    return {key: [name for *_, name in sorted(names)] for key, names in by_key.items()}


def repair(files: LocalFiles) -> list[Path]:
    """Move damaged and invalid record files to ``damaged/``, so that their runs are run again.

    If the newest record of a run is damaged, its earlier records and its scores are moved too,
    since they would count otherwise. Records of another version of the suite stay.

    Returns:
        The new paths.
    """
    errors = read_records(files).errors
    damaged = [f"{RECORDS}/{name}" for name, error in errors.items() if error.damaged]
    _, control_errors = read_controls(files)
    damaged += [f"{CONTROLS}/{name}" for name, error in control_errors.items() if error.damaged]
    dependent = []
    for names in record_file_names(files).values():
        records = [name for name in names if parse_file_name(name).kind == "retry"]
        if records and (newest := errors.get(records[-1])) and newest.damaged:
            dependent += [f"{RECORDS}/{name}" for name in names if name not in errors]
    # Damaged files are moved last, so that an interrupted repair finds them again.
    moved = []
    for path in [*dependent, *damaged]:
        target, number = f"{DAMAGED}/{path}", 0
        while files.version(target) is not None:
            number += 1
            target = f"{DAMAGED}/{path}.{number}"
        # The file is gone if another process repairs the folder too.
        with (
            suppress(FileNotFoundError),
            as_store_errors(files.root / target, may_be_gone=True),
        ):
            files.move(path, target)
            moved.append(files.root / target)
    return moved


def report_invalid(
    files: LocalFiles, folder: str, errors: Mapping[str, RecordFileError], on_invalid: OnInvalid
) -> None:
    """Raise an error or log a warning that names the invalid files of a folder."""
    if not errors:
        return
    lines = [f"{files.root / folder / name}: {error}" for name, error in sorted(errors.items())]
    lines = first_few(lines, _MAX_LISTED_FILES)
    if any(error.damaged for error in errors.values()):
        lines.append(
            f"`hgmvae-bench run --repair` moves damaged files to {files.root / DAMAGED} "
            "and runs those runs again"
        )
    if on_invalid == "raise":
        raise StoreError("\n".join(lines))
    logger.warning("warning: invalid record files are skipped:\n%s", "\n".join(lines))


def _names(files: LocalFiles, folder: str) -> Iterator[str]:
    with as_store_errors(files.root / folder, "read"):
        yield from (name for name, _ in files.scan(folder))
