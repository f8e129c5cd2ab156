"""Merging of results folders, for example of several machines.

Runs that the target lacks are copied byte for byte with all their files. If both folders have a
run, one of the two records takes precedence: a complete one over one that is not, then the one that
finished first, then the one with the smaller hash. Precedence depends on the two records alone, so
the order of merging does not matter. Nothing is deleted: a superseded record of the target stays
next to the new one.

Metrics that were added to a record later are copied if the target lacks them; a missing metric
does not replace a value.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hgmvae_bench.storage.leases import FOLDER as LEASES
from hgmvae_bench.storage.leases import Leases, new_owner_id
from hgmvae_bench.storage.record_file import as_store_errors, parse_file_name, record_file_name
from hgmvae_bench.storage.record_folder import RECORDS
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.atomic_files import LocalFiles, complete_files, write_atomically
from hgmvae_bench.utils.errors import UserError

Scored = TypeVar("Scored", ScoreRecord, ControlRecord)


class MergeError(UserError, RuntimeError):
    """The folders cannot be merged; the message says why."""


@dataclass
class MergeReport:
    """Outcome for each run of the source.

    Attributes:
        copied: keys of runs that the target lacked.
        identical: keys of runs whose record is the same in both folders.
        equivalent: keys of runs with the same results but, for example, other times.
        superseded: keys of runs that differ and for which the source's record takes precedence.
        kept: keys of runs that differ and for which the target's record takes precedence.
        differing_grids: names of grids that differ; the target's stay.
    """

    copied: list[str] = field(default_factory=list)
    identical: list[str] = field(default_factory=list)
    equivalent: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    differing_grids: list[str] = field(default_factory=list)


def merge(source: Path, target: Path) -> MergeReport:
    """Copy everything that ``target`` lacks from ``source``, which stays unchanged.

    An interrupted merge can be repeated: a run's record is copied after its other files.

    Raises:
        MergeError: if the source is no results folder or is the target, or if another process
            works on one of the runs in the target.
        StoreError: if a record is damaged or invalid, or the target cannot be written.
    """
    if not (source / RECORDS).is_dir():
        raise MergeError(f"{source} is not a results folder: it has no folder {RECORDS}")
    if source.resolve() == target.resolve():
        raise MergeError(f"{source} cannot be merged into itself")
    merger = _Merger(Store(source), Store(target, new_owner_id()))
    merger.merge_runs_and_controls()
    merger.merge_grids()
    merger.copy_cache()
    return merger.report


@dataclass
class _Merger:
    """Merges one results folder into another.

    Attributes:
        source: store to copy from.
        target: store to copy to.
        report: outcome so far.
    """

    source: Store
    target: Store
    report: MergeReport = field(default_factory=MergeReport)

    def merge_runs_and_controls(self) -> None:
        # Everything is read first, so that an invalid record stops the merge before it writes.
        found, known = self.source.runs(), self.target.runs()
        found_controls, known_controls = self.source.controls(), self.target.controls()
        names = self.source.record_files()
        leases = Leases(self.target.files, self.target.owner)
        with as_store_errors(self.target.root / LEASES), leases:
            for key, run in found.items():
                if key in known:
                    self._merge_known_run(names[key], run, known[key], leases)
                else:
                    self._copy_run(names[key], key, leases)
        for record in self.source.control_records():
            own = known_controls[record.key].metrics if record.key in known_controls else {}
            missing = _missing_metrics(own, found_controls[record.key].metrics)
            if part := _select_metrics(record, missing):
                self.target.add_control(part)

    def merge_grids(self) -> None:
        for path in sorted((self.source.root / "grids").glob("*.yaml")):
            if not _copy_new_file(path, self.target.root / "grids" / path.name):
                self.report.differing_grids.append(path.stem)

    def copy_cache(self) -> None:
        cache = self.target.root / "cache"
        for path in complete_files(self.source.root / "cache"):
            _copy_new_file(path, cache / path.relative_to(self.source.root / "cache"))

    def _copy_run(self, names: list[str], key: str, leases: Leases) -> None:
        """Copy a run that the target lacks, with the record files of these names."""
        first = record_file_name(key, "retry", 0)
        if not leases.acquire(first) or self.target.has_record_file(first):
            raise self._in_use(key)
        self._copy_other_files(key)
        for name in names:
            self._copy_record(name, name)
        leases.release(first)
        self.report.copied.append(key)

    def _in_use(self, key: str) -> MergeError:
        return MergeError(
            f"another process works on {key} in {self.target.root} or has just recorded it; "
            "merge again when it has ended (runs that were copied stay)"
        )

    def _merge_known_run(
        self, names: list[str], run: StoredRun, known: StoredRun, leases: Leases
    ) -> None:
        """Merge a run that both folders have."""
        key = run.record.key
        if known.sha256 == run.sha256:
            self.report.identical.append(key)
            self._copy_scores(names, run, known.metrics)
            return
        same = _same_results(run, known)
        if _precedence(run) < _precedence(known):
            # A driver that retries the run writes the same record.
            following = record_file_name(key, "retry", known.retries + 1)
            if not leases.acquire(following) or self.target.has_record_file(following):
                raise self._in_use(key)
            self._copy_other_files(key)
            self._copy_record(record_file_name(key, "retry", run.retries), following)
            leases.release(following)
            (self.report.equivalent if same else self.report.superseded).append(key)
            self._copy_scores(names, run, run.record.metrics)
        else:
            (self.report.equivalent if same else self.report.kept).append(key)

    def _copy_record(self, name: str, new_name: str) -> None:
        with as_store_errors(self.source.root / RECORDS / name, "read"):
            content = self.source.files.read(f"{RECORDS}/{name}")
        with as_store_errors(self.target.root / RECORDS / new_name):
            self.target.files.create(f"{RECORDS}/{new_name}", content)

    def _copy_scores(
        self, names: list[str], run: StoredRun, known: Mapping[str, MetricValue]
    ) -> None:
        """Copy metrics that were added to the run's record and that are not ``known``."""
        missing = _missing_metrics(known, run.metrics)
        if not missing:
            return
        for name in names:
            if parse_file_name(name).kind == "scores":
                scores = self.source.score_record(name)
                if scores.record_sha256 == run.sha256 and (
                    part := _select_metrics(scores, missing)
                ):
                    self.target.add_scores(part)

    def _copy_other_files(self, key: str) -> None:
        """Copy a run's artifacts and log, replacing those of the target."""
        artifacts = self.source.fetch_artifacts(key)
        if artifacts.is_dir():
            with self.target.replacing_artifacts(key) as folder:
                shutil.copytree(artifacts, folder, copy_function=_copy_file, dirs_exist_ok=True)
        log, target_log = self.source.log_path(key), self.target.log_path(key)
        if log.is_file():
            with as_store_errors(target_log):
                target_log.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(log, target_log)


def _same_results(run: StoredRun, other: StoredRun) -> bool:
    """Whether two records differ at most in times, provenance and fingerprints."""

    def results(run: StoredRun) -> tuple[str, dict[str, list[float]], dict[str, float | None]]:
        values = {name: metric.value for name, metric in run.record.metrics.items()}
        return run.record.status, run.record.history, values

    return results(run) == results(other)


def _precedence(run: StoredRun) -> tuple[bool, float, str]:
    """Sort key; the lesser record takes precedence."""
    return run.record.status != "complete", run.record.finished_at.timestamp(), run.sha256


def _missing_metrics(
    known: Mapping[str, MetricValue], found: Mapping[str, MetricValue]
) -> dict[str, MetricValue]:
    """Select the found metrics that are unknown, or that have a value and are known as missing."""
    return {
        name: metric
        for name, metric in found.items()
        if name not in known or (known[name].missing and not metric.missing)
    }


def _select_metrics(scored: Scored, wanted: Mapping[str, MetricValue]) -> Scored | None:
    """Return the record with only the wanted metrics; None if it has none of them."""
    metrics = {name: m for name, m in scored.metrics.items() if wanted.get(name) == m}
    return scored.model_copy(update={"metrics": metrics}) if metrics else None


def _copy_file(path: str | Path, target: str | Path) -> None:
    """Copy a file, replacing the target."""
    with as_store_errors(Path(path), "read"):
        content = Path(path).read_bytes()
    with as_store_errors(Path(target)):
        write_atomically(Path(target), content)


def _copy_new_file(path: Path, target: Path) -> bool:
    """Copy a file unless the target exists; False if the target differs."""
    with as_store_errors(path, "read"):
        content = path.read_bytes()
    with as_store_errors(target):
        if LocalFiles(target.parent).create(target.name, content):
            return True
    with as_store_errors(target, "read"):
        return target.read_bytes() == content
