"""Tables: the records of a grid's cells, aggregated over seeds and laid out."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from hgmvae_bench.analysis import render
from hgmvae_bench.analysis.stats import ALPHA, holm, mean_interval, welch_test
from hgmvae_bench.grid import Axis, Grid, TableSpec
from hgmvae_bench.plugins.protocols import Direction
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError

ARROWS = {"higher": "↑", "lower": "↓"}
HEADINGS: dict[Axis, str] = {
    "dataset": "Dataset",
    "metric": "Metric",
    "model": "Model",
    "latent_dim": "L",
}


class TableError(UserError, RuntimeError):
    """Records that must not stand in one table; the message names them."""


@dataclass(frozen=True)
class TableEntry:
    """One metric of one cell, aggregated over its seeds.

    Attributes:
        mean: over the seeds that have a value; None if none has.
        std: standard deviation over seeds (n - 1); None below two values.
        low, high: 95 % interval of the mean; None below two values.
        n: seeds with a value.
        seeds: those that the grid asks for or that have a run.
        planned: seeds that the grid asks for.
        rank: 1 is the best mean among the models of a dataset, metric and latent dim; None for a
            control, which is no model.
        p_value: of Welch's t-test against the best, corrected after Holm for all pairs of models
            of that dataset, metric and latent dim, because it is the data that say which is the
            best; None for the best itself, or where either has fewer than two values.
        tied: whether the seeds cannot tell it apart from the best; for the best, whether any
            other is tied with it.
        note: why ``n`` is below ``seeds``; empty if it is not.
        control: whether ``model`` is the name of a control.
        by_seed: the values behind the mean.
    """

    table: str
    dataset: str
    metric: str
    direction: Direction
    model: str
    latent_dim: int
    mean: float | None
    std: float | None
    n: int
    seeds: int
    planned: int
    rank: int | None
    note: str
    control: bool = False
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    tied: bool = False
    by_seed: Mapping[int, float] = field(default_factory=dict, hash=False)

    @property
    def footnote(self) -> str:
        """What the reader must know of it; empty if all is as planned."""
        if self.control:
            return self.note
        if self.note:
            return f"n = {self.n} of {self.seeds}: {self.note}"
        return "" if self.n == self.planned else f"n = {self.n}"


@dataclass(frozen=True)
class Table:
    """One table of a grid.

    Attributes:
        spec: its layout.
        entries: in the order of the table's own lists.
        titles: how names are written, by axis.
    """

    spec: TableSpec
    entries: list[TableEntry]
    titles: Mapping[Axis, Mapping[Any, str]]

    @property
    def values(self) -> pd.DataFrame:
        """A row for each entry, a column for each of its attributes but the values by seed."""
        names = [each.name for each in dataclasses.fields(TableEntry) if each.name != "by_seed"]
        rows = [[getattr(entry, name) for name in names] for entry in self.entries]
        numbers = ["mean", "std", "low", "high", "p_value"]
        return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(numbers, float))

    @property
    def control_titles(self) -> set[str]:
        """How the controls among the models are written."""
        return {self.titles["model"][entry.model] for entry in self.entries if entry.control}

    @property
    def means(self) -> pd.DataFrame:
        """The means at full precision, laid out as the paper prints the table."""
        return self.layout(lambda entry: entry.mean)

    def layout(self, write: Callable[[TableEntry], Any], empty: Any = None) -> pd.DataFrame:
        """The table as the paper prints it.

        Args:
            write: what to put in an entry's place.
            empty: what to put where there is no entry, as beside a control.
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
        """Three decimals as in the paper; one where a metric goes into the hundreds."""
        means = [
            abs(entry.mean)
            for entry in self.entries
            if entry.metric == metric and entry.mean and not entry.control
        ]
        return 1 if max(means, default=0) >= 100 else 3

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
            frame=self.layout(self._written, empty=render.FormattedEntry("–")),
            tidy=self.values,
            legend=_legend(self.entries),
            notes={mark: note for note, mark in self.footnotes.items()},
            ranked=True,
        )

    def _written(self, entry: TableEntry) -> render.FormattedEntry:
        return render.FormattedEntry(
            text=_number(entry, self.decimals(entry.metric)),
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

    Args:
        grid: what the table is of.
        spec: which part of it, and the layout.
        runs: of the grid's cells; others are passed over.
        controls: those that belong to the table's images stand beside its models, without a rank.

    Raises:
        TableError: if runs of one dataset saw different data, or values of one metric were
            computed with different things.
    """
    by_cell: dict[str, list[StoredRun]] = defaultdict(list)
    for run in runs:
        by_cell[run.record.cell].append(run)
    of_other_settings = _strangers(grid, by_cell)
    entries: list[TableEntry] = []
    for dataset in spec.datasets:
        for metric in spec.metrics:
            direction = METRICS[metric].direction
            used: list[StoredRun] = []
            for latent_dim in spec.latent_dims:
                group = []
                for model in spec.models:
                    cell = grid.cell(dataset, model, latent_dim)
                    of_cell = by_cell[cell.identity]
                    used += of_cell
                    others = of_other_settings[cell.slug]
                    group.append(
                        TableEntry(
                            table=spec.name,
                            dataset=dataset,
                            metric=metric,
                            direction=direction,
                            model=model,
                            latent_dim=latent_dim,
                            **_aggregate(of_cell, metric, grid.spec.seeds, others),
                        )
                    )
                entries += _ranked(group)
            _check_comparable(used, dataset, metric)
    control_entries, control_titles = _controls(grid, spec, by_cell, controls)
    titles = _titles(grid, spec)
    titles["model"] |= control_titles
    return Table(spec.with_models(list(control_titles)), entries + control_entries, titles)


def _strangers(grid: Grid, by_cell: Mapping[str, list[StoredRun]]) -> Counter[str]:
    """How many runs have other settings than the grid's cell of the same readable name."""
    own = {cell.identity for cell in grid.cells}
    return Counter(
        run.record.key.rpartition("_s")[0]
        for identity, runs in by_cell.items()
        if identity not in own
        for run in runs
    )


def _controls(
    grid: Grid,
    spec: TableSpec,
    by_cell: Mapping[str, list[StoredRun]],
    controls: Iterable[ControlRecord],
) -> tuple[list[TableEntry], dict[Any, str]]:
    """The entries of the controls that have something to say in a table, and their titles."""
    entries: list[TableEntry] = []
    titles: dict[Any, str] = {}
    in_order = sorted(controls, key=lambda record: (record.latent_dim is not None, record.control))
    for dataset, latent_dim in itertools.product(spec.datasets, spec.latent_dims):
        cells = [grid.cell(dataset, model, latent_dim) for model in spec.models]
        runs = [run for cell in cells for run in by_cell[cell.identity]]
        for control in in_order:
            # A table without runs has no data that controls could belong to.
            if not runs or not control.matches(cells[0], runs[0].record.data_digest):
                continue
            for metric in [name for name in spec.metrics if name in control.metrics]:
                name = f"control:{control.control}"
                titles[name] = f"{control.title} (control)"
                mean, note = _of_control(control, metric, runs)
                entries.append(
                    TableEntry(
                        table=spec.name,
                        dataset=dataset,
                        metric=metric,
                        direction=METRICS[metric].direction,
                        model=name,
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
                )
    return entries, titles


def _of_control(
    control: ControlRecord, metric: str, runs: list[StoredRun]
) -> tuple[float | None, str]:
    """A control's value if it may stand beside the runs' values, and what is to be said of it."""
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
        raise TableError(
            f"{metric} on {control.dataset}: a control and a run with different fingerprints "
            f"cannot stand in one table:\n  {control.key}: {recorded.fingerprint}\n"
            f"  {run.record.key}: {other.fingerprint}\n"
            "delete the control's file, and `hgmvae-bench evaluate` scores it again"
        )
    return recorded.value, ""


def _titles(grid: Grid, spec: TableSpec) -> dict[Axis, dict[Any, str]]:
    return {
        "dataset": {name: grid.dataset_title(name) for name in spec.datasets},
        "metric": {
            name: METRICS[name].title + ARROWS[METRICS[name].direction] for name in spec.metrics
        },
        "model": {name: grid.model_title(name) for name in spec.models},
        "latent_dim": {latent_dim: str(latent_dim) for latent_dim in spec.latent_dims},
    }


def _aggregate(
    runs: list[StoredRun], metric: str, planned: int, of_other_settings: int
) -> dict[str, Any]:
    """Mean and spread over the seeds that have a value, and why others have none."""
    by_seed: dict[int, float] = {}
    lacking: Counter[str] = Counter()
    for run in runs:
        recorded = run.metrics.get(metric)
        if run.record.status != "complete":
            lacking[run.record.status] += 1
        elif recorded is None:
            lacking["not scored"] += 1
        elif recorded.value is None:
            lacking[recorded.short_reason] += 1
        else:
            by_seed[run.record.seed] = recorded.value
    if len(runs) < planned:
        others = f" ({of_other_settings} there are of other settings)" if of_other_settings else ""
        lacking[f"not run{others}"] += planned - len(runs)
    values = list(by_seed.values())
    low, high = mean_interval(values) or (None, None)
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "low": low,
        "high": high,
        "n": len(values),
        "seeds": max(planned, len(runs)),
        "planned": planned,
        "rank": None,
        "note": "; ".join(f"{count} × {reason}" for reason, count in lacking.items()),
        "by_seed": by_seed,
    }


def _ranked(group: list[TableEntry]) -> list[TableEntry]:
    """Give each entry its place among the models, and say which cannot be told from the best.

    The rank is 1 + the number of strictly better means.
    """
    sign = 1 if group[0].direction == "higher" else -1
    scores = {entry.model: sign * entry.mean for entry in group if entry.mean is not None}
    if not scores:
        return group
    best = next(entry for entry in group if scores.get(entry.model) == max(scores.values()))
    others = [entry for entry in group if entry.model in scores and entry is not best]
    pairs = list(itertools.combinations([best, *others], 2))
    tests = holm([welch_test(a.by_seed.values(), b.by_seed.values()) for a, b in pairs])
    # The pairs that the best is in come first.
    p_values = {other.model: test for other, test in zip(others, tests, strict=False)}
    tied = {model for model, p_value in p_values.items() if p_value is None or p_value >= ALPHA}
    return [
        dataclasses.replace(
            entry,
            rank=1 + sum(score > scores[entry.model] for score in scores.values()),
            p_value=p_values.get(entry.model),
            tied=entry.model in tied or (entry is best and bool(tied)),
        )
        if entry.model in scores
        else entry
        for entry in group
    ]


def _check_comparable(runs: list[StoredRun], dataset: str, metric: str) -> None:
    """Refuse to compare values of different data or of different fingerprints."""
    first: dict[str, tuple[Any, str]] = {}
    for run in runs:
        what: dict[str, Any] = {"data": run.record.data_digest}
        recorded = run.metrics.get(metric)
        if recorded is not None and recorded.value is not None:
            what["fingerprint"] = recorded.fingerprint
        for kind, value in what.items():
            other, key = first.setdefault(kind, (value, run.record.key))
            if value != other:
                raise TableError(
                    f"{metric} on {dataset}: runs of different {kind} cannot stand in one table:\n"
                    f"  {key}: {other}\n  {run.record.key}: {value}\n"
                    "move one of them to another results folder"
                )


def _legend(entries: list[TableEntry]) -> str:
    spread = "Mean ± standard deviation over seeds"
    planned = next(entry.planned for entry in entries if not entry.control)
    tests = f"Welch's t-tests over seeds, Holm, {100 * ALPHA:.0f} %"
    return f"{spread} (n = {planned} unless noted). Ranks within a dataset, metric and L ({tests})."


def _number(entry: TableEntry, decimals: int) -> str:
    if entry.mean is None:
        return "–"
    spread = "" if entry.std is None else f" ± {entry.std:.{decimals}f}"
    return render.format_number(entry.mean, f".{decimals}f") + spread
