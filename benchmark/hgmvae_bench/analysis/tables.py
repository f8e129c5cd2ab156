"""Tables: the entries of a grid's cells, laid out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.stats import ALPHA
from hgmvae_bench.analysis.table_controls import control_entries
from hgmvae_bench.analysis.table_entries import (
    GridRuns,
    TableEntry,
    aggregate_cell,
    choose_decimals,
    rank_entries,
)
from hgmvae_bench.grid import Axis, Grid, TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import distinct_titles

ARROWS = {"higher": "↑", "lower": "↓"}
HEADINGS: dict[Axis, str] = {
    "dataset": "Dataset",
    "metric": "Metric",
    "model": "Model",
    "latent_dim": "L",
}


@dataclass(frozen=True)
class Table:
    """One table of a grid.

    Attributes:
        spec: its layout.
        entries: in the order of the table's own lists.
        titles: displayed names, by axis.
    """

    spec: TableSpec
    entries: list[TableEntry]
    titles: Mapping[Axis, Mapping[Any, str]]

    @property
    def values(self) -> pd.DataFrame:
        """A row per entry, a column per attribute except the values by seed."""
        names = [
            each.name
            for each in dataclasses.fields(TableEntry)
            if each.name not in ("by_seed", "alternative_by_seed")
        ]
        rows = [[getattr(entry, name) for name in names] for entry in self.entries]
        numbers = ["mean", "std", "low", "high", "median", "p_value"]
        return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(numbers, float))

    @property
    def control_titles(self) -> set[str]:
        """Displayed names of the controls among the models."""
        return {self.titles["model"][entry.model] for entry in self.entries if entry.control}

    @property
    def means(self) -> pd.DataFrame:
        """The means at full precision, laid out as the paper prints the table."""
        return self.layout(lambda entry: entry.mean)

    def layout(self, write: Callable[[TableEntry], Any], empty: Any = None) -> pd.DataFrame:
        """Lay out the table as the paper prints it.

        Args:
            write: gives the content for an entry.
            empty: content where there is no entry, as beside a control.
        """
        frame = self.values
        frame["written"] = pd.Series([write(entry) for entry in self.entries], dtype=object)
        for axis, titles in self.titles.items():
            frame[axis] = pd.Categorical(
                frame[axis].map(titles), categories=list(titles.values()), ordered=True
            )
        # pivot sorts by the categories' order, which is the order of the table's own lists.
        rows, columns = list(self.spec.rows), list(self.spec.columns)
        laid_out = frame.pivot(index=rows, columns=columns, values="written")
        laid_out.index.names = [HEADINGS[axis] for axis in rows]
        laid_out.columns.names = [HEADINGS[axis] for axis in columns]
        return laid_out.map(lambda written: empty if pd.isna(written) else written)

    def decimals(self, metric: str) -> int:
        """Decimals of a metric: three as in the paper, or one if a mean is 100 or more."""
        means = [
            abs(entry.mean)
            for entry in self.entries
            if entry.metric == metric and entry.mean and not entry.control
        ]
        return choose_decimals(max(means, default=0))

    @cached_property
    def footnotes(self) -> dict[str, str]:
        """The letter of each footnote."""
        return render.footnote_letters(entry.footnote for entry in self.entries if entry.footnote)

    @property
    def formatted(self) -> render.FormattedTable:
        """The table ready to be written in any of the formats."""
        return render.FormattedTable(
            name=f"table-{self.spec.name}",
            title=self.spec.title,
            number=f"Table {self.spec.name}.",
            frame=self.layout(self._formatted_entry, empty=render.FormattedEntry("–")),
            tidy=self.values,
            legend=_legend(self.entries),
            notes={mark: note for note, mark in self.footnotes.items()},
            ranked=True,
        )

    def _formatted_entry(self, entry: TableEntry) -> render.FormattedEntry:
        return render.FormattedEntry(
            format_mean(entry, self.decimals(entry.metric)),
            rank=entry.rank,
            tied=entry.tied,
            note=self.footnotes.get(entry.footnote, ""),
        )


def build_table(
    grid: Grid,
    spec: TableSpec,
    runs: Iterable[StoredRun],
    controls: Iterable[ControlRecord] = (),
) -> Table:
    """Aggregate recorded runs of a grid into a table.

    Values that are not comparable (`incomparable`) are left out, for all models of their dataset
    and metric, with a note that says why.

    Args:
        grid: the grid that the table belongs to.
        spec: the table's cells, metrics and layout.
        runs: recorded runs; those of other cells are ignored.
        controls: controls to show beside the models, without a rank; those of other images are
            ignored.
    """
    grid_runs = GridRuns.of(grid, runs)
    entries: list[TableEntry] = []
    for dataset, metric in itertools.product(spec.datasets, spec.metrics):
        comparable = grid_runs.comparable(spec, dataset, metric)
        for latent_dim in spec.latent_dims:
            group = [
                aggregate_cell(comparable, spec.name, dataset, metric, model, latent_dim)
                for model in spec.models
            ]
            entries += rank_entries(group)
    of_controls, control_titles = control_entries(grid_runs, spec, controls)
    titles = _titles(grid, spec)
    titles["model"] = distinct_titles(titles["model"] | control_titles)
    return Table(spec.with_models(list(control_titles)), entries + of_controls, titles)


def with_all_metrics(grid: Grid, spec: TableSpec, runs: Iterable[StoredRun]) -> TableSpec:
    """Add to a table every metric that runs of its cells have recorded.

    The table's own metrics come first, then the others in the order of registration. Recorded
    metrics that are no longer registered are left out.
    """
    return with_recorded_metrics(grid, spec, runs, METRICS)


def with_recorded_metrics(
    grid: Grid, spec: TableSpec, runs: Iterable[StoredRun], metrics: Iterable[str]
) -> TableSpec:
    """Add to a table those of these metrics that runs of its cells have recorded."""
    cells = {
        grid.cell(dataset, model, latent_dim).identity
        for dataset, model, latent_dim in itertools.product(
            spec.datasets, spec.models, spec.latent_dims
        )
    }
    recorded = {name for run in runs if run.record.cell in cells for name in run.metrics}
    others = [name for name in metrics if name in recorded and name not in spec.metrics]
    return spec.with_metrics([*spec.metrics, *others]) if others else spec


def metric_titles(metrics: Iterable[str], space: str = "") -> dict[str, str]:
    """Titles of metrics by name, with an arrow unless neutral; equal titles also with the name.

    Args:
        metrics: registered names of the metrics that are shown together.
        space: text between title and arrow.
    """
    titles = distinct_titles({name: METRICS[name].title for name in metrics})
    arrows = {name: ARROWS.get(METRICS[name].direction) for name in titles}
    return {
        name: f"{title}{space}{arrows[name]}" if arrows[name] else title
        for name, title in titles.items()
    }


def _titles(grid: Grid, spec: TableSpec) -> dict[Axis, dict[Any, str]]:
    return {
        "dataset": {name: grid.dataset_title(name) for name in spec.datasets},
        "metric": metric_titles(spec.metrics),
        "model": {name: grid.model_title(name) for name in spec.models},
        "latent_dim": {latent_dim: str(latent_dim) for latent_dim in spec.latent_dims},
    }


def _legend(entries: list[TableEntry]) -> str:
    spread = "Mean ± standard deviation over seeds"
    planned = next(entry.planned for entry in entries if not entry.control)
    tests = f"Welch's t-tests over seeds, Holm, {100 * ALPHA:.0f} %"
    return f"{spread} (n = {planned} unless noted). Ranks within a dataset, metric and L ({tests})."


def format_mean(entry: TableEntry, decimals: int) -> str:
    """Mean and standard deviation, such as ``0.412 ± 0.010``."""
    if entry.mean is None:
        return "–"
    spread = "" if entry.std is None else f" ± {entry.std:.{decimals}f}"
    return render.format_number(entry.mean, f".{decimals}f") + spread
