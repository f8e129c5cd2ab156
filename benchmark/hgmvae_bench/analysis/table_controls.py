"""Entries of tables for the controls that are shown beside the models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.table_entries import GridRuns, TableEntry, first_difference
from hgmvae_bench.grid import TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.stored_run import StoredRun


def control_entries(
    grid_runs: GridRuns, spec: TableSpec, controls: Iterable[ControlRecord]
) -> tuple[list[TableEntry], dict[Any, str]]:
    """Entries of the controls that have values for a table's cells, and the controls' titles."""
    entries: list[TableEntry] = []
    titles: dict[Any, str] = {}
    in_order = sorted(controls, key=lambda record: (record.latent_dim is not None, record.control))
    for dataset, latent_dim in itertools.product(spec.datasets, spec.latent_dims):
        cells = [grid_runs.grid.cell(dataset, model, latent_dim) for model in spec.models]
        runs = [run for cell in cells for run in grid_runs.by_cell.get(cell.identity, [])]
        # Without runs, or with runs on different data, the data to match are unknown.
        digests = {run.record.data_digest for run in runs}
        matching = [
            control
            for control in in_order
            if len(digests) == 1 and control.matches(cells[0], *digests)
        ]
        for control in matching:
            metrics = [name for name in spec.metrics if name in control.metrics]
            if metrics:
                titles[f"control:{control.control}"] = f"{control.title} (control)"
            entries += [
                _control_entry(control, spec.name, dataset, metric, latent_dim, runs)
                for metric in metrics
            ]
    return entries, titles


def _control_entry(
    control: ControlRecord,
    table: str,
    dataset: str,
    metric: str,
    latent_dim: int,
    runs: list[StoredRun],
) -> TableEntry:
    mean, note = _control_value(control, metric, runs)
    return TableEntry(
        table=table,
        dataset=dataset,
        metric=metric,
        direction=METRICS[metric].direction,
        model=f"control:{control.control}",
        latent_dim=latent_dim,
        mean=mean,
        std=None,
        n=int(mean is not None),
        seeds=1,
        planned=1,
        rank=None,
        note=note,
        control=True,
    )


def _control_value(
    control: ControlRecord, metric: str, runs: list[StoredRun]
) -> tuple[float | None, str]:
    """A control's value if it is comparable with the runs' values, and its footnote."""
    recorded = control.metrics[metric]
    if recorded.value is None:
        return None, recorded.short_reason
    if not control.comparable:
        value = render.format_number(recorded.value, ".3g")
        return None, f"{value}, of other images than the models': not comparable"
    for run in runs:
        other = run.metrics.get(metric)
        if other is None or other.value is None or other.fingerprint == recorded.fingerprint:
            continue
        difference = first_difference(recorded.fingerprint, other.fingerprint)
        return None, f"not comparable: it and {run.record.key} differ in {difference}"
    return recorded.value, ""
