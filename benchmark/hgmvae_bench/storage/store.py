"""Results folders: records, the files that runs save, and the grids that were run.

::

    results/
      grids/smoke.yaml                   the grid file, as it was last run
      records/<run key>.json             one record per run, written once
      records/<run key>.retry-1.json     a retry of a failed run; the newest record counts
      records/<run key>.scores-1.json    metrics added later
      controls/<control key>.json        metrics of a control, and …scores-1.json as for runs
      artifacts/<run key>/               weights and codes of the trained model
      logs/<run key>.log                 terminal output of the run
      checkpoints/<run key>.safetensors  unfinished trainings (`training.checkpoints`)
      leases/                            which process works on which run (`storage.leases`)
      cache/                             classifiers that metrics trained
      damaged/                           files that ``run --repair`` moved aside

A run writes its record last, to a temporary file that is synced and then linked under a new name.
A process that is killed at any moment therefore leaves only complete records, and a run without a
record is run again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from hgmvae_bench.grid import Grid, load_grid
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.record_file import (
    Content,
    Kind,
    RecordFile,
    RecordFileError,
    StoreError,
    as_store_errors,
    parse_file,
    parse_file_name,
    record_file_name,
    serialize,
)
from hgmvae_bench.storage.remote import RemoteResults
from hgmvae_bench.storage.schema import ControlRecord, Record, ScoreRecord
from hgmvae_bench.storage.stored_run import StoredRun, merge_metrics
from hgmvae_bench.utils.atomic_files import LocalFiles, NotAFileError, write_durably

RECORDS = "records"
CONTROLS = "controls"
DAMAGED = "damaged"

OnInvalid = Literal["raise", "warn"]
"""What to do about invalid record files: raise a `StoreError`, or skip them with a warning."""

_MAX_LISTED_FILES = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A results folder.

    Attributes:
        root: the folder; created by the first write.
        owner: id of the writing process, if several share the folder (`storage.leases`).
    """

    root: Path
    owner: str = ""

    @cached_property
    def files(self) -> LocalFiles:
        """The folder's files."""
        return LocalFiles(self.root, self.owner)

    def runs(self, *, on_invalid: OnInvalid = "raise") -> dict[str, StoredRun]:
        """Read every recorded run, with the metrics that were added later, by run key.

        A run is skipped if its newest record is invalid; an invalid score record costs only its
        metrics.

        Args:
            on_invalid: ``raise``, or ``warn`` to log a warning and return the valid runs.

        Raises:
            StoreError: if a file cannot be read; with ``raise``, if one is damaged, edited,
                invalid, or of an unknown schema version. The message names the files.
        """
        contents = self._read_records()
        self._report(RECORDS, contents.errors, on_invalid)
        return contents.runs()

    def controls(self, *, on_invalid: OnInvalid = "raise") -> dict[str, ControlRecord]:
        """Read every recorded control, with the metrics that were added later, by its key.

        Args:
            on_invalid: as in `runs`.

        Raises:
            StoreError: as in `runs`.
        """
        controls: dict[str, ControlRecord] = {}
        for record in self.control_records(on_invalid=on_invalid):
            known = controls[record.key].metrics if record.key in controls else {}
            metrics = merge_metrics(known, record.metrics)
            controls[record.key] = record.model_copy(update={"metrics": metrics})
        return controls

    def control_records(self, *, on_invalid: OnInvalid = "raise") -> list[ControlRecord]:
        """Read every record of every control; first records come before later ones.

        Args:
            on_invalid: as in `runs`.

        Raises:
            StoreError: as in `runs`.
        """
        files, errors = self._read_controls()
        self._report(CONTROLS, errors, on_invalid)
        return [file.content for file in files]

    def score_record(self, name: str) -> ScoreRecord:
        """Read the score record with this file name.

        Raises:
            StoreError: if it cannot be read or is invalid.
        """
        with as_store_errors(self.root / RECORDS / name, "read"):
            return self._read(RECORDS, name, ScoreRecord).content

    def repair(self) -> list[Path]:
        """Move damaged and invalid record files to ``damaged/``, so that their runs are run again.

        If the newest record of a run is damaged, its earlier records and its scores are moved
        too, since they would count otherwise. Records of another version of the suite stay.

        Returns:
            The new paths.
        """
        errors = self._read_records().errors
        damaged = [f"{RECORDS}/{name}" for name, error in errors.items() if error.damaged]
        _, control_errors = self._read_controls()
        damaged += [f"{CONTROLS}/{name}" for name, error in control_errors.items() if error.damaged]
        dependent = []
        for names in self.record_files().values():
            records = [name for name in names if parse_file_name(name).kind == "retry"]
            if records and (newest := errors.get(records[-1])) and newest.damaged:
                dependent += [f"{RECORDS}/{name}" for name in names if name not in errors]
        # Damaged files are moved last, so that an interrupted repair finds them again.
        moved = []
        for path in [*dependent, *damaged]:
            target, number = f"{DAMAGED}/{path}", 0
            while self.files.version(target) is not None:
                number += 1
                target = f"{DAMAGED}/{path}.{number}"
            # The file is gone if another process repairs the folder too.
            with (
                suppress(FileNotFoundError),
                as_store_errors(self.root / target, may_be_gone=True),
            ):
                self.files.move(path, target)
                moved.append(self.root / target)
        return moved

    def record_files(self) -> dict[str, list[str]]:
        """File names of every run by key: records first, then scores, each in their order."""
        files: dict[str, list[tuple[Kind, int, str]]] = {}
        for name in self._names(RECORDS):
            with suppress(RecordFileError):
                key, kind, number = parse_file_name(name)
                files.setdefault(key, []).append((kind, number, name))
        return {key: [name for *_, name in sorted(names)] for key, names in files.items()}

    def has_record_file(self, name: str) -> bool:
        """Whether the folder of records has a file of this name."""
        return self.files.version(f"{RECORDS}/{name}") is not None

    def add(
        self,
        record: Record,
        number: int | None = None,
        artifacts: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Write the record of a finished run; earlier records of the run stay.

        The run's artifacts always belong to a record that was written.

        Args:
            record: of the run.
            number: number in the file name, which is the number of earlier records that the caller
                knows of; the first free number if None.
            artifacts: files that the run saves, by name.

        Returns:
            Whether the record was written; False if another process recorded the run first.

        Raises:
            StoreError: if it cannot be written; no partial file is left.
        """
        if number is not None and self.has_record_file(
            record_file_name(record.key, "retry", number)
        ):
            return False
        if artifacts:
            self.write_artifacts(record.key, artifacts)
        if self._write(f"{RECORDS}/{record.key}", "retry", record, number):
            return True
        if artifacts:  # Another process recorded the run after the check above.
            shutil.rmtree(self._artifact_path(record.key), ignore_errors=True)
        return False

    def add_scores(self, score: ScoreRecord, number: int | None = None) -> bool:
        """Write metrics that were computed for a recorded run; arguments as in `add`.

        Raises:
            StoreError: if they cannot be written; no partial file is left.
        """
        return self._write(f"{RECORDS}/{score.key}", "scores", score, number)

    def add_control(self, record: ControlRecord) -> None:
        """Write metrics of a control; its earlier records stay.

        Raises:
            StoreError: if they cannot be written; no partial file is left.
        """
        if not self._write(f"{CONTROLS}/{record.key}", "retry", record, 0):
            self._write(f"{CONTROLS}/{record.key}", "scores", record, None)

    def log_path(self, key: str) -> Path:
        """Path of a run's terminal output; it may not exist."""
        return self.root / "logs" / f"{key}.log"

    def artifact_folder(self, key: str) -> Path:
        """Folder of the files that a run saved; it may not exist.

        Raises:
            RemoteError: if the files must be downloaded and cannot be.
        """
        folder = self._artifact_path(key)
        if not folder.is_dir() and (remote := RemoteResults.of(self.root, self.owner)):
            remote.fetch_artifacts(key)
        return folder

    def write_artifacts(self, key: str, files: Mapping[str, bytes]) -> None:
        """Write the files that a run saves, by name, and remove earlier ones.

        Raises:
            StoreError: if they cannot be written; no partial files are left.
        """
        with self.replacing_artifacts(key) as folder:
            for name, content in files.items():
                write_durably(folder / name, content)

    @contextmanager
    def replacing_artifacts(self, key: str) -> Iterator[Path]:
        """Yield a temporary folder that replaces the run's artifacts when the block ends.

        Raises:
            StoreError: if it cannot be created or renamed.
        """
        target = self._artifact_path(key)
        with as_store_errors(target):
            temporary = self.files.temporary_folder("artifacts")
            try:
                yield temporary
                self._replace_folder(target, temporary)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def add_grid(self, grid: Grid) -> None:
        """Keep a copy of a grid file, replacing an earlier one of that name.

        Records belong to settings and not to grids, so replacing a grid loses no result.

        Raises:
            StoreError: if it cannot be written.
        """
        path = f"grids/{grid.spec.name}.yaml"
        with as_store_errors(self.root / path):
            self.files.write(path, grid.text.encode())

    def grid(self, name: str | None = None) -> Grid:
        """Load a grid that was run into this folder.

        Args:
            name: of the grid; may be None if the folder has only one.

        Raises:
            StoreError: if there is no grid, or several and no name.
            UnknownNameError: if no grid has that name.
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

    def remove_temporaries(self, living: set[str] | None = None) -> None:
        """Remove temporary files of killed processes; those of ``living`` owners stay."""
        folders = [RECORDS, CONTROLS, "artifacts", "grids", "cache", "checkpoints", "leases"]
        folders += [f"tables/{path.name}" for path in self.root.glob("tables/*")]
        for folder in folders:
            self.files.remove_temporaries(folder, living or set())

    def _names(self, folder: str) -> Iterator[str]:
        with as_store_errors(self.root / folder, "read"):
            yield from (name for name, _ in self.files.scan(folder))

    def _read(self, folder: str, name: str, content_type: type[Content]) -> RecordFile[Content]:
        """Read one record file.

        Raises:
            RecordFileError: if it is invalid.
            StoreError: if it cannot be read.
            FileNotFoundError: if it is gone.
        """
        not_a_file = None
        with as_store_errors(self.root / folder / name, "read", may_be_gone=True):
            try:
                raw = self.files.read(f"{folder}/{name}")
            except NotAFileError as error:
                not_a_file = error
        if not_a_file is not None:
            raise RecordFileError("not a regular file") from not_a_file
        return parse_file(name, raw, content_type)

    def _read_records(self) -> _RecordFolder:
        contents = _RecordFolder()
        for name in self._names(RECORDS):
            try:
                if parse_file_name(name).kind == "scores":
                    contents.scores.append(self._read(RECORDS, name, ScoreRecord))
                else:
                    contents.records.append(self._read(RECORDS, name, Record))
            except FileNotFoundError:  # Another process has moved it since it was listed.
                continue
            except RecordFileError as error:
                contents.errors[name] = error
        return contents

    def _read_controls(
        self,
    ) -> tuple[list[RecordFile[ControlRecord]], dict[str, RecordFileError]]:
        """Valid control records by number, and errors by file name."""
        files, errors = [], {}
        for name in self._names(CONTROLS):
            try:
                files.append(self._read(CONTROLS, name, ControlRecord))
            except FileNotFoundError:
                continue
            except RecordFileError as error:
                errors[name] = error
        return sorted(files, key=lambda file: file.name.number), errors

    def _report(
        self, folder: str, errors: Mapping[str, RecordFileError], on_invalid: OnInvalid
    ) -> None:
        """Raise an error or log a warning that names the invalid files of a folder."""
        if not errors:
            return
        lines = [f"{self.root / folder / name}: {error}" for name, error in sorted(errors.items())]
        if len(lines) > _MAX_LISTED_FILES:
            lines[_MAX_LISTED_FILES:] = [f"and {len(lines) - _MAX_LISTED_FILES} more"]
        if any(error.damaged for error in errors.values()):
            lines.append(
                f"`hgmvae-bench run --repair` moves damaged files to {self.root / DAMAGED} "
                "and runs those runs again"
            )
        if on_invalid == "raise":
            raise StoreError("\n".join(lines))
        _logger.warning("warning: invalid record files are skipped:\n%s", "\n".join(lines))

    def _artifact_path(self, key: str) -> Path:
        return self.root / "artifacts" / key

    def _replace_folder(self, target: Path, temporary: Path) -> None:
        """Rename ``temporary`` to ``target``; a failure leaves ``target`` as it was."""
        # Renaming the old folder first, and removing it last, keeps the gap short.
        replaced = temporary.with_name(f"{temporary.name}-replaced")
        with suppress(FileNotFoundError):
            target.rename(replaced)
        try:
            temporary.rename(target)
        except OSError:
            with suppress(FileNotFoundError):
                replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def _write(self, path: str, kind: Kind, content: BaseModel, number: int | None) -> bool:
        """Write the file with that number, or the first free one; False if the file exists."""
        raw = serialize(content)
        free = 1 if kind == "scores" else 0
        with as_store_errors(self.root / f"{path}.json"):
            if number is not None:
                return self.files.create(record_file_name(path, kind, number), raw)
            while not self.files.create(record_file_name(path, kind, free), raw):
                free += 1
        return True


@dataclass
class _RecordFolder:
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
