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
      cache/                             classifiers that metrics trained, features of test images
      damaged/                           files that ``run --repair`` moved aside

A run writes its record last, to a temporary file that is synced and then linked under a new name.
A process that is killed at any moment therefore leaves only complete records, and a run without a
record is run again.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from hgmvae_bench.grid import Grid, load_grid
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.record_file import (
    Kind,
    StoreError,
    as_store_errors,
    record_file_name,
    serialize,
)
from hgmvae_bench.storage.record_folder import (
    ARTIFACTS,
    CONTROLS,
    RECORDS,
    OnInvalid,
    read_controls,
    read_file,
    read_records,
    record_file_names,
    repair,
    report_invalid,
)
from hgmvae_bench.storage.remote import RemoteResults
from hgmvae_bench.storage.schema import ControlRecord, Record, ScoreRecord
from hgmvae_bench.storage.stored_run import StoredRun, merge_metrics
from hgmvae_bench.utils.atomic_files import LocalFiles, write_durably
from hgmvae_bench.utils.temporary import CACHE_TEMPORARY, remove_abandoned


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

        A run is skipped if its newest record is invalid; an invalid score record affects only its
        metrics.

        Args:
            on_invalid: ``raise``, or ``warn`` to log a warning and return the valid runs.

        Raises:
            StoreError: if a file cannot be read; with ``raise``, if one is damaged, edited,
                invalid, or of an unknown schema version. The message names the files.
        """
        contents = read_records(self.files)
        report_invalid(self.files, RECORDS, contents.errors, on_invalid)
        return {
            key: run if run.record.status == "complete" else replace(run, log=self.log_name(key))
            for key, run in contents.runs().items()
        }

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
        files, errors = read_controls(self.files)
        report_invalid(self.files, CONTROLS, errors, on_invalid)
        return [file.content for file in files]

    def score_record(self, name: str) -> ScoreRecord:
        """Read the score record with this file name.

        Raises:
            StoreError: if it cannot be read or is invalid.
        """
        with as_store_errors(self.root / RECORDS / name, "read"):
            return read_file(self.files, RECORDS, name, ScoreRecord).content

    def repair(self) -> list[Path]:
        """Move damaged and invalid record files to ``damaged/``, so that their runs are run again.

        Returns:
            The new paths (`hgmvae_bench.storage.record_folder.repair`).
        """
        return repair(self.files)

    def record_files(self) -> dict[str, list[str]]:
        """File names of every run by key: records first, then scores, each in their order."""
        return record_file_names(self.files)

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
            record: record of the run.
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
            shutil.rmtree(self.artifact_folder(record.key), ignore_errors=True)
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

    def log_name(self, key: str) -> str | None:
        """Name of a run's terminal output in the folder; None if the run printed nothing."""
        path = self.log_path(key)
        with suppress(OSError):  # A log may be gone, or belong to somebody else.
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size:
                return path.relative_to(self.root).as_posix()
        return None

    def artifact_folder(self, key: str) -> Path:
        """Folder of the files that a run saved; of remote results it may not have been fetched."""
        return self.root / ARTIFACTS / key

    def fetch_artifacts(self, key: str) -> Path:
        """Folder of the files that a run saved, which are downloaded first if they are remote.

        Raises:
            RemoteError: if the files must be downloaded and cannot be.
        """
        folder = self.artifact_folder(key)
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
        target = self.artifact_folder(key)
        with as_store_errors(target):
            temporary = self.files.make_temporary_folder(ARTIFACTS)
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
            name: name of the grid; may be None if the folder has only one.

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
        folders = [RECORDS, CONTROLS, ARTIFACTS, "grids", "cache", "checkpoints", "leases"]
        folders += [f"tables/{path.name}" for path in self.root.glob("tables/*")]
        for folder in folders:
            self.files.remove_temporaries(folder, living or set())
        remove_abandoned(self.root / "cache" / CACHE_TEMPORARY)

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
