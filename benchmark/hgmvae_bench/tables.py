"""Tables: the records of a grid's cells, aggregated over seeds and laid out."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from hgmvae_bench.errors import UserError
from hgmvae_bench.grid import Axis, Grid, TableSpec
from hgmvae_bench.plugins import METRICS, Direction
from hgmvae_bench.store import StoredRun

Format = Literal["text", "csv", "latex"]

ARROWS = {"higher": "↑", "lower": "↓"}
SUPERSCRIPTS = {1: "¹", 2: "²", 3: "³"}
LATEX_STYLES = {1: r"\textbf{%s}", 2: r"\textbf{\textit{%s}}", 3: r"\textit{%s}"}
HEADINGS: dict[Axis, str] = {
    "dataset": "Dataset",
    "metric": "Metric",
    "model": "Model",
    "latent_dim": "L",
}


class TableError(UserError, RuntimeError):
    """Records that must not stand in one table; the message names them."""


@dataclass(frozen=True)
class Entry:
    """One metric of one cell, aggregated over its seeds.

    Attributes:
        mean: over the seeds that have a value; None if none has.
        std: standard deviation over seeds (n - 1); None below two values.
        n: seeds with a value.
        planned: seeds that the grid asks for.
        rank: 1 is the best mean among the models of a dataset, metric and latent dim.
        note: why ``n`` is below ``planned``; empty if it is not.
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
    planned: int
    rank: int | None
    note: str


@dataclass(frozen=True)
class Table:
    """One table of a grid.

    Attributes:
        spec: its layout.
        entries: in the order of the table's own lists.
        titles: how names are written, by axis.
    """

    spec: TableSpec
    entries: list[Entry]
    titles: Mapping[Axis, Mapping[Any, str]]

    @property
    def values(self) -> pd.DataFrame:
        """A row for each entry, a column for each of its attributes."""
        return pd.DataFrame([dataclasses.asdict(entry) for entry in self.entries])

    def layout(self, write: Callable[[Entry, int], str]) -> pd.DataFrame:
        """The table as the paper prints it; ``write`` writes an entry with so many decimals."""
        frame = self.values
        frame["entry"] = [write(entry, self.decimals(entry.metric)) for entry in self.entries]
        for axis, titles in self.titles.items():
            frame[axis] = pd.Categorical(
                frame[axis].map(titles), categories=list(titles.values()), ordered=True
            )
        # pivot sorts by the categories' order, which is the order of the table's own lists.
        rows, columns = list(self.spec.rows), list(self.spec.columns)
        laid_out = frame.pivot(index=rows, columns=columns, values="entry")
        laid_out.index.names = [HEADINGS[axis] for axis in rows]
        laid_out.columns.names = [HEADINGS[axis] for axis in columns]
        return laid_out

    def decimals(self, metric: str) -> int:
        """Three decimals as in the paper; one where a metric goes into the hundreds."""
        means = [abs(entry.mean) for entry in self.entries if entry.metric == metric and entry.mean]
        return 1 if max(means, default=0) >= 100 else 3

    def footnotes(self) -> list[str]:
        """What the reader must know of entries with fewer runs than planned."""
        notes = defaultdict(list)
        for entry in self.entries:
            if entry.note:
                notes[entry.note].append(
                    f"{self.titles['model'][entry.model]} on "
                    f"{self.titles['dataset'][entry.dataset]}, L = {entry.latent_dim}, "
                    f"{METRICS[entry.metric].title}"
                )
        return [f"{_shorten(entries)}: {note}" for note, entries in notes.items()]


def build_table(grid: Grid, spec: TableSpec, runs: Iterable[StoredRun]) -> Table:
    """Aggregate recorded runs of a grid into a table.

    Raises:
        TableError: if runs of one dataset saw different data, or values of one metric were
            computed with different things.
    """
    by_cell: dict[str, list[StoredRun]] = defaultdict(list)
    for run in runs:
        by_cell[run.record.cell].append(run)
    entries: list[Entry] = []
    for dataset in spec.datasets:
        for metric in spec.metrics:
            used: list[StoredRun] = []
            for latent_dim in spec.latent_dims:
                group = []
                for model in spec.models:
                    of_cell = by_cell[grid.cell(dataset, model, latent_dim).identity]
                    used += of_cell
                    group.append(
                        Entry(
                            table=spec.name,
                            dataset=dataset,
                            metric=metric,
                            direction=METRICS[metric].direction,
                            model=model,
                            latent_dim=latent_dim,
                            **_aggregate(of_cell, metric, grid.spec.seeds),
                        )
                    )
                entries += _ranked(group)
            _check_comparable(used, dataset, metric)
    return Table(spec, entries, _titles(grid, spec))


def _titles(grid: Grid, spec: TableSpec) -> dict[Axis, dict[Any, str]]:
    return {
        "dataset": {name: grid.dataset_title(name) for name in spec.datasets},
        "metric": {
            name: METRICS[name].title + ARROWS[METRICS[name].direction] for name in spec.metrics
        },
        "model": {name: grid.model_title(name) for name in spec.models},
        "latent_dim": {latent_dim: str(latent_dim) for latent_dim in spec.latent_dims},
    }


def _aggregate(runs: list[StoredRun], metric: str, planned: int) -> dict[str, Any]:
    """Mean and spread over the seeds that have a value, and why others have none."""
    values: list[float] = []
    lacking: Counter[str] = Counter()
    for run in runs:
        recorded = run.metrics.get(metric)
        if run.record.status != "complete":
            lacking[run.record.status] += 1
        elif recorded is None:
            lacking["not scored"] += 1
        elif recorded.value is None:
            lacking[recorded.missing or ""] += 1
        else:
            values.append(recorded.value)
    if len(runs) < planned:
        lacking["not run"] += planned - len(runs)
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "planned": max(planned, len(runs)),
        "rank": None,
        "note": "; ".join(f"{count} × {reason}" for reason, count in lacking.items()),
    }


def _ranked(group: list[Entry]) -> list[Entry]:
    """Give each entry its place among the models: 1 + the number of strictly better means."""
    sign = 1 if group[0].direction == "higher" else -1
    scores = [sign * entry.mean for entry in group if entry.mean is not None]
    return [
        entry
        if entry.mean is None
        else dataclasses.replace(entry, rank=1 + sum(s > sign * entry.mean for s in scores))
        for entry in group
    ]


def _check_comparable(runs: list[StoredRun], dataset: str, metric: str) -> None:
    """Refuse to compare values of different data or of different fingerprints."""
    first: dict[str, tuple[str, str]] = {}
    for run in runs:
        what = {"data": run.record.data_digest}
        recorded = run.metrics.get(metric)
        if recorded is not None and recorded.value is not None:
            what["fingerprint"] = str(dict(sorted(recorded.fingerprint.items())))
        for kind, value in what.items():
            other, key = first.setdefault(kind, (value, run.record.key))
            if value != other:
                raise TableError(
                    f"{metric} on {dataset}: runs of different {kind} cannot stand in one table:\n"
                    f"  {key}: {other}\n  {run.record.key}: {value}\n"
                    "move one of them to another results folder"
                )


def write_text(entry: Entry, decimals: int) -> str:
    """An entry for the terminal: mean ± standard deviation, the best three raised ¹ ² ³."""
    if entry.mean is None or entry.rank is None:
        return "–" + ("*" if entry.note else "")
    mark = SUPERSCRIPTS.get(entry.rank, "")
    return _number(entry.mean, entry.std, decimals) + mark + ("*" if entry.note else "")


def write_latex(entry: Entry, decimals: int) -> str:
    """An entry for LaTeX: the best bold, the second bold italic, the third italic."""
    if entry.mean is None or entry.rank is None:
        return "--" + ("$^*$" if entry.note else "")
    number = _number(entry.mean, entry.std, decimals).replace("±", r"$\pm$")
    return LATEX_STYLES.get(entry.rank, "%s") % number + ("$^*$" if entry.note else "")


def to_text(table: Table) -> str:
    """The table in plain text, with its title and footnotes."""
    laid_out = table.layout(write_text)
    lines = [f"Table {table.spec.name}. {table.spec.title}", "", laid_out.to_string(), ""]
    lines.append("mean ± standard deviation over seeds; ¹ best, ² second, ³ third")
    lines += [f"* {note}" for note in table.footnotes()]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line an entry, at full precision."""
    return table.values.to_csv(index=False)


def to_latex(table: Table) -> str:
    r"""A ``table`` environment; the document needs the packages booktabs and multirow."""
    laid_out = table.layout(write_latex)
    laid_out = laid_out.rename_axis(index=_escape, columns=_escape)
    for axis in ("index", "columns"):
        laid_out = laid_out.rename(_escape, axis=axis)
    notes = "; ".join(_escape(note) for note in table.footnotes())
    caption = f"{_escape(table.spec.title)}. Mean $\\pm$ standard deviation over seeds; best in "
    caption += r"\textbf{bold}, second in \textbf{\textit{bold italic}}, third in \textit{italic}."
    latex: str = laid_out.style.to_latex(
        hrules=True,
        multicol_align="c",
        position="ht",
        position_float="centering",
        label=f"tab:{table.spec.name}",
        caption=caption + (f" $^*$ {notes}." if notes else ""),
    )
    return "% needs \\usepackage{booktabs,multirow}\n" + latex


WRITERS: dict[Format, tuple[str, Callable[[Table], str]]] = {
    "text": ("txt", to_text),
    "csv": ("csv", to_csv),
    "latex": ("tex", to_latex),
}

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "β": r"$\beta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "×": r"$\times$",
    "–": "--",
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _number(mean: float, std: float | None, decimals: int) -> str:
    spread = "" if std is None else f" ± {std:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"


def _shorten(entries: list[str], shown: int = 3) -> str:
    more = len(entries) - shown
    return "; ".join(entries[:shown]) + (f"; and {more} more" if more > 0 else "")
