"""A results folder: records, the files that runs leave, and the grids that were run.

::

    results/
      grids/smoke.yaml                   the grid file, as it was last run
      records/<run key>.json             one record a run, written once
      records/<run key>.retry-1.json     the run done again after it failed; the newest counts
      records/<run key>.scores-1.json    metrics added later
      controls/<control key>.json        metrics of a control, and …scores-1.json as for runs
      artifacts/<run key>/               weights and codes of the trained model
      logs/<run key>.log                 what the run wrote to its terminal
      checkpoints/<run key>.safetensors  a training that is under way (`training.checkpoints`)
      leases/                            who does which run (`hgmvae_bench.storage.leases`)
      cache/                             what can be made again: an index, trained classifiers
      damaged/                           what ``--repair`` moved aside

A record is the last thing that a run writes, whole or not at all: a temporary file, fsync, and a
name that nobody else has. Whatever is killed at whatever moment, a folder holds only whole records,
and what has no record is done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from hgmvae_bench.grid import Grid, load_grid
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage import index
from hgmvae_bench.storage.record_file import (
    Kind,
    RecordFileError,
    StoreError,
    as_store_errors,
    parse,
    parse_file_name,
    record_file_name,
    serialize,
    verify,
)
from hgmvae_bench.storage.remote import RemoteResults
from hgmvae_bench.storage.schema import ControlRecord, Record, ScoreRecord
from hgmvae_bench.storage.stored_run import RECORDS, IndexedRun, StoredRun, Summary, merge_metrics
from hgmvae_bench.utils.atomic_files import FileVersion, LocalFiles

CONTROLS = "controls"
DAMAGED = "damaged"

_SHOWN = 10


@dataclass(frozen=True)
class Store:
    """A results folder.

    Attributes:
        root: the folder; made when something is first written.
        owner: who writes, where several processes share the folder (`hgmvae_bench.storage.leases`).
    """

    root: Path
    owner: str = ""

    @cached_property
    def files(self) -> LocalFiles:
        """The folder's files."""
        return LocalFiles(self.root, self.owner)

    def runs(self) -> dict[str, StoredRun]:
        """Every recorded run by its key, with the metrics added later.

        Raises:
            StoreError: if files are damaged, edited, or of an unknown schema version, by name.
        """
        contents = self._read_all()
        if contents.faults:
            shown = [f"{self.root / RECORDS / n}: {f}" for n, f in contents.faults.items()]
            more = f"\nand {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            advice = ""
            if any(fault.damaged for fault in contents.faults.values()):
                advice = (
                    f"\n--repair moves what is damaged to {self.root / DAMAGED}; "
                    "those runs are then done again"
                )
            raise StoreError("\n".join(shown[:_SHOWN]) + more + advice)
        return contents.runs

    def repair(self) -> list[Path]:
        """Move damaged and edited records aside, so that their runs are done again.

        With the newest record of a run go its earlier ones, lest they count again, and what was
        added to them. Records of another version of the suite are left where they are.

        Returns:
            Where they lie now.
        """
        moved = []
        faults = self._read_all().faults
        damaged = [f"{RECORDS}/{name}" for name, fault in faults.items() if fault.damaged]
        for name, _ in self._scan(CONTROLS):
            try:
                with suppress(FileNotFoundError):
                    self._control(name)
            except RecordFileError as fault:
                if fault.damaged:
                    damaged.append(f"{CONTROLS}/{name}")
        beside = []
        for names in self.record_files().values():
            records = [name for name in names if parse_file_name(name)[1] == "retry"]
            if records and (newest := faults.get(records[-1])) and newest.damaged:
                beside += [f"{RECORDS}/{name}" for name in names if name not in faults]
        # What is damaged goes last, so that it is found again should this be broken off.
        for path in [*beside, *damaged]:
            target, number = f"{DAMAGED}/{path}", 0
            while self.files.version(target) is not None:
                number += 1
                target = f"{DAMAGED}/{path}.{number}"
            # Gone where another process repairs the folder too.
            with suppress(FileNotFoundError), as_store_errors(self.root / target, may_be_gone=True):
                self.files.move(path, target)
                moved.append(self.root / target)
        return moved

    def _read_all(self) -> _Contents:
        known, entries, fresh = index.load(self.files), {}, 0
        contents = _Contents()
        scores: list[tuple[str, int, index.Entry]] = []
        newest: dict[str, tuple[int, str]] = {}
        for name, version in self._scan(RECORDS):
            try:
                entry = known.get(name)
                if entry is None or entry.version != version:
                    entry = self._entry(name, version)
                    fresh += 1
            except FileNotFoundError:  # moved aside since it was listed
                continue
            except RecordFileError as fault:
                contents.faults[name] = fault
                continue
            entries[name] = entry
            key, kind, number = parse_file_name(name)
            if kind == "scores":
                scores.append((key, number, entry))
            elif number >= newest.get(key, (-1, ""))[0]:
                newest[key] = number, name
        scorings: dict[str, int] = {}
        for key, number, _ in scores:
            scorings[key] = max(number, scorings.get(key, 0))
        for key, (number, name) in newest.items():
            contents.runs[key] = IndexedRun(
                self.files, name, entries[name], number, scorings.get(key, 0)
            )
        for key, _, entry in sorted(scores):
            if key in contents.runs:
                contents.runs[key].add_scores(entry)
        if fresh >= index.WORTHWHILE:
            index.save(self.files, entries)
        return contents

    def _scan(self, folder: str) -> Iterator[FileVersion]:
        with as_store_errors(self.root / folder, "read"):
            yield from self.files.scan(folder)

    def _entry(self, name: str, version: str) -> index.Entry:
        """What an index holds of a file, read from the file."""
        key, kind, _ = parse_file_name(name)
        with as_store_errors(self.root / RECORDS / name, "read", may_be_gone=True):
            raw = self.files.read(f"{RECORDS}/{name}")
        sha256, body = verify(raw)
        content = from_json(body)
        fields = _SCORE_FIELDS if kind == "scores" else _RECORD_FIELDS
        # The whole is validated when it is asked for; here only what is not of this layout.
        if content.get("schema_version") != 1 or not fields <= content.keys():
            parse(body, ScoreRecord) if kind == "scores" else parse(body, Record)
        if content["key"] != key:
            raise RecordFileError(f"is the record of {content['key']}", damaged=True)
        return index.Entry(version, sha256, to_json({field: content[field] for field in fields}))

    def record_files(self) -> dict[str, list[str]]:
        """Names of every run's record files, by its key: first attempt and first scores first."""
        files: dict[str, list[tuple[str, int, str]]] = {}
        for name, _ in self._scan(RECORDS):
            with suppress(RecordFileError):
                key, kind, number = parse_file_name(name)
                files.setdefault(key, []).append((kind, number, name))
        return {key: [name for *_, name in sorted(names)] for key, names in files.items()}

    def add(
        self,
        record: Record,
        number: int | None = None,
        artifacts: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Write the record of a finished run; earlier ones of the same run are kept beside it.

        The run's artifacts are never those of a record that is not written.

        Args:
            record: what became of the run.
            number: how many records of the run there are by what the caller knows; as many as
                there are if not given.
            artifacts: the files that the run leaves, by name.

        Returns:
            Whether it was written; False if another process has recorded the run since.

        Raises:
            StoreError: if it cannot be written; nothing is left half-written.
        """
        if number is not None and self.has_record_file(
            record_file_name(record.key, "retry", number)
        ):
            return False
        if artifacts:
            self.write_artifacts(record.key, artifacts)
        if self._write(f"{RECORDS}/{record.key}", "retry", record, number):
            return True
        if artifacts:  # The other process was first by a moment, and ours have replaced its.
            shutil.rmtree(self._artifacts(record.key), ignore_errors=True)
        return False

    def add_scores(self, score: ScoreRecord, number: int | None = None) -> bool:
        """Write metrics that were computed for a recorded run later on; arguments as in `add`.

        Raises:
            StoreError: if they cannot be written; nothing is left half-written.
        """
        return self._write(f"{RECORDS}/{score.key}", "scores", score, number)

    def score_record(self, name: str) -> ScoreRecord:
        """The metrics that a file among the records has added to a run.

        Raises:
            StoreError: if it cannot be read, is damaged, or of an unknown schema version.
        """
        with as_store_errors(self.root / RECORDS / name, "read"):
            _, body = verify(self.files.read(f"{RECORDS}/{name}"))
            return parse(body, ScoreRecord)

    def controls(self) -> dict[str, ControlRecord]:
        """Every recorded control by its key, with the metrics added later.

        Raises:
            StoreError: as `runs` does.
        """
        controls: dict[str, ControlRecord] = {}
        for record in self.control_records():
            known = controls[record.key].metrics if record.key in controls else {}
            metrics = merge_metrics(known, record.metrics, lambda m: m.value is None)
            controls[record.key] = record.model_copy(update={"metrics": metrics})
        return controls

    def control_records(self) -> list[ControlRecord]:
        """Every record of every control, as they were written: the first of each, then later ones.

        Raises:
            StoreError: as `runs` does.
        """
        records: list[tuple[int, ControlRecord]] = []
        for name, _ in self._scan(CONTROLS):
            with (
                suppress(FileNotFoundError),
                as_store_errors(self.root / CONTROLS / name, "read", may_be_gone=True),
            ):
                records.append(self._control(name))
        return [record for _, record in sorted(records, key=lambda item: item[0])]

    def _control(self, name: str) -> tuple[int, ControlRecord]:
        """One control record, with the number in its name."""
        _, _, number = parse_file_name(name)
        with as_store_errors(self.root / CONTROLS / name, "read", may_be_gone=True):
            raw = self.files.read(f"{CONTROLS}/{name}")
        _, body = verify(raw)
        return number, parse(body, ControlRecord)

    def add_control(self, record: ControlRecord) -> None:
        """Write metrics of a control; those written before are kept beside them.

        Raises:
            StoreError: if they cannot be written; nothing is left half-written.
        """
        if not self._write(f"{CONTROLS}/{record.key}", "retry", record, 0):
            self._write(f"{CONTROLS}/{record.key}", "scores", record, None)

    def has_record_file(self, name: str) -> bool:
        """Whether there is a file of that name among the records."""
        return self.files.version(f"{RECORDS}/{name}") is not None

    def log_path(self, key: str) -> Path:
        """Where a run's output goes (it may not exist)."""
        return self.root / "logs" / f"{key}.log"

    def artifact_folder(self, key: str) -> Path:
        """Folder of the files that a run left (it may not exist).

        Raises:
            RemoteError: if they lie elsewhere and cannot be had.
        """
        folder = self._artifacts(key)
        if not folder.is_dir() and (elsewhere := RemoteResults.of(self.root, self.owner)):
            elsewhere.fetch_artifacts(key)
        return folder

    def _artifacts(self, key: str) -> Path:
        return self.root / "artifacts" / key

    def write_artifacts(self, key: str, files: Mapping[str, bytes]) -> None:
        """Write the files that a run leaves, by name, in place of earlier ones.

        Raises:
            StoreError: if they cannot be written; nothing is left half-written.
        """
        with self.replacing_artifacts(key) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)

    @contextmanager
    def replacing_artifacts(self, key: str) -> Iterator[Path]:
        """A temporary folder that takes the place of the run's artifacts when the block ends.

        Raises:
            StoreError: if it cannot be made or moved.
        """
        target = self._artifacts(key)
        with as_store_errors(target):
            temporary = self.files.temporary_folder("artifacts")
            try:
                yield temporary
                # Moved aside and removed last, so that it can go back, and is missed for no longer
                # than it takes to rename.
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
        path = f"grids/{grid.spec.name}.yaml"
        with as_store_errors(self.root / path):
            self.files.write(path, grid.text.encode())

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

    def remove_temporaries(self, living: set[str] | None = None) -> None:
        """Remove what killed processes left half-written; what ``living`` owners write stays."""
        folders = [RECORDS, CONTROLS, "artifacts", "grids", "cache", "checkpoints", "leases"]
        folders += [f"tables/{path.name}" for path in self.root.glob("tables/*")]
        for folder in folders:
            self.files.remove_temporaries(folder, living or set())

    def _write(self, path: str, kind: Kind, content: BaseModel, number: int | None) -> bool:
        """Write the file of that number, or of the first that is free; False if it is there."""
        sealed = serialize(content)
        free = 1 if kind == "scores" else 0
        with as_store_errors(self.root / f"{path}.json"):
            if number is not None:
                return self.files.create(record_file_name(path, kind, number), sealed)
            while not self.files.create(record_file_name(path, kind, free), sealed):
                free += 1
        return True


@dataclass
class _Contents:
    """What lies among the records."""

    runs: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, RecordFileError] = field(default_factory=dict)


_RECORD_FIELDS = {*Summary._fields, "metrics"}
_SCORE_FIELDS = {"key", "record_sha256", "metrics"}
