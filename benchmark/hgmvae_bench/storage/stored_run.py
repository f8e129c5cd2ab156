"""A recorded run with all its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hgmvae_bench.storage.schema import MetricValue, Record


@dataclass(frozen=True)
class StoredRun:
    """A run of a results folder.

    Attributes:
        record: the newest record of the run.
        sha256: SHA-256 of the record's content.
        metrics: the record's metrics and those added later.
        retries: number in the newest record's file name, 0 for the first.
        scorings: highest number of the run's score records, 0 if there are none.
        log: for a failed or diverged run, the name of its log in the results folder; None if the
            run printed nothing.
    """

    record: Record
    sha256: str
    metrics: Mapping[str, MetricValue]
    retries: int = 0
    scorings: int = 0
    log: str | None = None


def runs_by_cell(runs: Iterable[StoredRun]) -> dict[str, list[StoredRun]]:
    """Runs by the identity of their cell, those of a cell sorted by seed."""
    by_cell: dict[str, list[StoredRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.record.seed):
        by_cell[run.record.cell].append(run)
    return dict(by_cell)


def merge_metrics(
    known: Mapping[str, MetricValue], later: Mapping[str, MetricValue]
) -> dict[str, MetricValue]:
    """Metrics with those added later; a missing one does not replace a value."""
    counting = {
        name: metric
        for name, metric in later.items()
        if name not in known or known[name].missing or not metric.missing
    }
    return {**known, **counting}
