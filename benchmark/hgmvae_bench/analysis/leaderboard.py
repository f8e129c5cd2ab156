"""Leaderboards: one row per model of a dataset and latent dim, from recorded runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from hgmvae_bench.analysis.escape import escape_markdown
from hgmvae_bench.analysis.render import format_number
from hgmvae_bench.analysis.table_entries import TableEntry
from hgmvae_bench.analysis.tables import Table, build_table
from hgmvae_bench.grid import Grid, TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.stored_run import StoredRun, runs_by_cell

MAIN_METRICS = ("accuracy", "own-accuracy", "sc", "db", "svm-accuracy", "ssim", "nll")
"""Metrics of a leaderboard, as far as any run has them; the first orders the models."""

MIN_MODELS = 2


@dataclass(frozen=True)
class Leaderboard:
    """The models of one dataset and latent dim.

    Attributes:
        dataset: name in the grid.
        latent_dim: L.
        frame: the table to print as Markdown, with escaped names. Each row is a model, best first,
            with its metrics, the number of seeds and the median training time on the hardware
            that trained most runs.
    """

    dataset: str
    latent_dim: int
    frame: pd.DataFrame


def leaderboards(grid: Grid, runs: Iterable[StoredRun]) -> list[Leaderboard]:
    """Build a leaderboard for each dataset and latent dim for which two models have runs.

    Args:
        grid: names the cells.
        runs: recorded runs.
    """
    recorded = [run for run in runs if run.record.status == "complete"]
    by_cell = runs_by_cell(recorded)
    models: dict[tuple[str, int], list[str]] = {}
    for cell, (dataset, model, latent_dim) in grid.cell_names.items():
        if cell.identity in by_cell:
            models.setdefault((dataset, latent_dim), []).append(model)
    boards = []
    for (dataset, latent_dim), names in sorted(models.items()):
        cells = {name: grid.cell(dataset, name, latent_dim).identity for name in names}
        present = {m for c in cells.values() for run in by_cell[c] for m in run.metrics}
        shown = [metric for metric in MAIN_METRICS if metric in present]
        if len(names) < MIN_MODELS or not shown:
            continue
        spec = TableSpec(
            name=f"{dataset}-{latent_dim}",
            title=f"{dataset}, L = {latent_dim}",
            datasets=[dataset],
            models=names,
            latent_dims=[latent_dim],
            metrics=shown,
            rows=["model"],
            columns=["metric"],
        )
        table = build_table(grid, spec, recorded)
        by_model = {name: by_cell[identity] for name, identity in cells.items()}
        boards.append(Leaderboard(dataset, latent_dim, _frame(table, by_model)))
    return boards


def _frame(table: Table, runs: dict[str, list[StoredRun]]) -> pd.DataFrame:
    """Lay out a leaderboard, ordered by the first metric."""
    entries = {(entry.model, entry.metric): entry for entry in table.entries}
    first = table.spec.metrics[0]
    higher = METRICS[first].direction != "lower"

    def order(model: str) -> tuple[bool, float]:
        mean = entries[model, first].mean
        return (mean is None, 0.0 if mean is None else -mean if higher else mean)

    rows = []
    for model in sorted(table.spec.models, key=order):
        row = {"model": escape_markdown(table.titles["model"][model])}
        for metric in table.spec.metrics:
            row[escape_markdown(table.titles["metric"][metric])] = _format_mean(
                table, entries[model, metric]
            )
        rows.append(row | _cost(runs[model]))
    return pd.DataFrame(rows)


def _format_mean(table: Table, entry: TableEntry) -> str:
    """Format a mean and its 95 % interval, with ⁼ if it is not distinguishable from the best."""
    if entry.mean is None:
        return "–"
    form = f".{table.decimals(entry.metric)}f"
    text = format_number(entry.mean, form)
    if entry.low is not None and entry.high is not None:
        text += f" [{format_number(entry.low, form)}, {format_number(entry.high, form)}]"
    return f"**{text}**" if entry.rank == 1 else f"{text} ⁼" if entry.tied else text


def _cost(runs: Sequence[StoredRun]) -> dict[str, str]:
    """Number of seeds, and the median training time on the most frequent hardware."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        times = seconds.setdefault(run.record.hardware, [])
        times.append(run.record.seconds.get("training", 0.0))
    hardware, times = max(seconds.items(), key=lambda item: len(item[1]))
    minutes = statistics.median(times) / 60
    return {"seeds": str(len(runs)), "training": f"{minutes:.1f} min ({escape_markdown(hardware)})"}
