"""Results folders of several machines into one.

Runs that the target lacks are copied with all their files, byte for byte. Of a run that both have,
one record counts: a complete one before one that is not, then the one that finished first, then the
one with the smaller hash. The rule looks at nothing but the two records, so that the order in which
folders are merged does not change what counts. Nothing is taken away: a record of the target that
no longer counts stays beside the one that does.

Metrics that were added to a record later come along where the target lacks them; one that is
missing takes no value's place.
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
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError

Scored = TypeVar("Scored", ScoreRecord, ControlRecord)


class MergeError(UserError, RuntimeError):
    """Folders that cannot be merged; the message says why."""


@dataclass
class MergeReport:
    """What became of the records of one source.

    Attributes:
        copied: keys of runs that the target lacked.
        identical: keys of runs whose record is the same in both.
        equivalent: keys of runs that were done in both, with the same results in other times.
        superseded: keys of runs that differ and whose record of the source counts now.
        kept: keys of runs that differ and whose record of the target counts.
        differing_grids: names of grids that differ; the target's stay.
    """

    copied: list[str] = field(default_factory=list)
    identical: list[str] = field(default_factory=list)
    equivalent: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    differing_grids: list[str] = field(default_factory=list)


def merge(source: Path, target: Path) -> MergeReport:
    """Bring everything that ``source`` knows into ``target``; ``source`` stays as it is.

    It can be broken off and called again: a run's record is copied after its other files.

    Raises:
        MergeError: if there is no such source, or it is the target.
        StoreError: if records are damaged, or the target cannot be written.
    """
    if not (source / "records").is_dir():
        raise MergeError(f"{source} is not a results folder: it has no folder records")
    if source.resolve() == target.resolve():
        raise MergeError(f"{source} cannot be merged into itself")
    ours, theirs = Store(target, new_owner_id()), Store(source)
    known, found = ours.runs(), theirs.runs()
    known_controls, found_controls = ours.controls(), theirs.controls()
    files = theirs.record_files()
    merged = MergeReport()
    with as_store_errors(target / LEASES), Leases(ours.files, ours.owner) as leases:
        for key, run in found.items():
            _merge_run(theirs, ours, leases, files[key], run, known.get(key), merged)
    for path in sorted((source / "grids").glob("*.yaml")):
        if not _copy_file(path, target / "grids" / path.name):
            merged.differing_grids.append(path.stem)
    for scored in theirs.control_records():
        mine = known_controls.get(scored.key)
        lacking = _lacking(mine.metrics if mine else {}, found_controls[scored.key].metrics)
        if part := _part(scored, lacking):
            ours.add_control(part)
    for path in (source / "cache").glob("**/*"):
        if path.is_file() and path.suffix != ".index" and not path.name.startswith("."):
            _copy_file(path, target / path.relative_to(source))
    return merged


def _merge_run(
    theirs: Store,
    ours: Store,
    leases: Leases,
    names: list[str],
    run: StoredRun,
    mine: StoredRun | None,
    merged: MergeReport,
) -> None:
    """Bring one run, with the record files of these names, to where it may be known already."""
    key = run.record.key
    if mine is None:
        _lease(ours, leases, key)
        _copy_extras(theirs, ours, key)
        for name in names:
            _copy_record(theirs, ours, name, name)
        leases.release(record_file_name(key, "retry", 0))
        merged.copied.append(key)
    elif mine.sha256 == run.sha256:
        merged.identical.append(key)
        _copy_scores(theirs, ours, names, run, mine)
    elif _precedence(run) < _precedence(mine):
        _copy_extras(theirs, ours, key)
        newest = record_file_name(key, "retry", run.retries)
        _copy_record(theirs, ours, newest, record_file_name(key, "retry", mine.retries + 1))
        (merged.equivalent if _same_results(run, mine) else merged.superseded).append(key)
        _copy_scores(theirs, ours, names, run, mine)
    else:
        (merged.equivalent if _same_results(run, mine) else merged.kept).append(key)


def _lease(ours: Store, leases: Leases, key: str) -> None:
    """Take a run that the target lacked, lest another process stores it meanwhile."""
    name = record_file_name(key, "retry", 0)
    if not leases.acquire(name) or ours.has_record_file(name):
        raise MergeError(
            f"another process is doing {key} in {ours.root}, or has just done it; "
            "what was copied stays: call again when that has ended"
        )


def _same_results(one: StoredRun, other: StoredRun) -> bool:
    """Whether two records of a run tell the same of it, time and place aside."""

    def told(run: StoredRun) -> tuple[str, dict[str, list[float]], dict[str, float | None]]:
        values = {name: metric.value for name, metric in run.record.metrics.items()}
        return run.record.status, run.record.history, values

    return told(one) == told(other)


def _precedence(run: StoredRun) -> tuple[bool, float, str]:
    """The lesser counts."""
    return run.record.status != "complete", run.record.finished_at.timestamp(), run.sha256


def _copy_record(source: Store, target: Store, name: str, new_name: str) -> None:
    with as_store_errors(source.root / "records" / name, "read"):
        content = source.files.read(f"records/{name}")
    with as_store_errors(target.root / "records" / new_name):
        target.files.create(f"records/{new_name}", content)


def _copy_scores(
    source: Store, target: Store, names: list[str], run: StoredRun, mine: StoredRun
) -> None:
    """Add the metrics that were added to a record later and that the target does not have."""
    known = mine.metrics if mine.sha256 == run.sha256 else run.record.metrics
    lacking = _lacking(known, run.metrics)
    if not lacking:
        return
    for name in names:
        if parse_file_name(name)[1] == "scores":
            scores = source.score_record(name)
            if scores.record_sha256 == run.sha256 and (part := _part(scores, lacking)):
                target.add_scores(part)


def _lacking(
    known: Mapping[str, MetricValue], found: Mapping[str, MetricValue]
) -> dict[str, MetricValue]:
    """What was found and is not known, or is known as missing and was found with a value."""
    return {
        name: metric
        for name, metric in found.items()
        if name not in known or (known[name].missing and not metric.missing)
    }


def _part(scored: Scored, lacking: Mapping[str, MetricValue]) -> Scored | None:
    """A record with those of its metrics alone that count and are lacking; None if none do."""
    metrics = {name: m for name, m in scored.metrics.items() if lacking.get(name) == m}
    return scored.model_copy(update={"metrics": metrics}) if metrics else None


def _copy_extras(source: Store, target: Store, key: str) -> None:
    """Copy what a run left beside its record, in place of what is there."""
    if source.artifact_folder(key).is_dir():
        with target.replacing_artifacts(key) as folder:
            shutil.copytree(
                source.artifact_folder(key), folder, copy_function=_copy, dirs_exist_ok=True
            )
    if source.log_path(key).is_file():
        with as_store_errors(target.log_path(key)):
            target.log_path(key).parent.mkdir(parents=True, exist_ok=True)
        _copy(source.log_path(key), target.log_path(key))


def _copy(path: str | Path, target: str | Path) -> None:
    """Copy a file in place of what is there."""
    with as_store_errors(Path(path), "read"):
        content = Path(path).read_bytes()
    with as_store_errors(Path(target)):
        Path(target).write_bytes(content)


def _copy_file(path: Path, target: Path) -> bool:
    """Copy a file unless there is one; False if there is another."""
    with as_store_errors(path, "read"):
        content = path.read_bytes()
    with as_store_errors(target):
        if Store(target.parent).files.create(target.name, content):
            return True
    with as_store_errors(target, "read"):
        return target.read_bytes() == content
