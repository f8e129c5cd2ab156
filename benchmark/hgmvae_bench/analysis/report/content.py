"""What a report says, as plain values for the page's template."""

from __future__ import annotations

import json
import shlex
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hgmvae_bench.analysis.figures.source import CellNames, FigureSource
from hgmvae_bench.analysis.render import (
    FormattedEntry,
    FormattedTable,
    column_headings,
    format_number,
)
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.stored_run import StoredRun

Facts = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A row's or a column's names and what the filter knows it by.

    Attributes:
        title: of a column.
        names: of a row, from the outside in.
        entries: of a row.
        run: key of the run that a row is about; empty if it is about several.
        dataset, model: empty where it belongs to all.
        control: whether it is a control's, which belongs to all models.
    """

    title: str = ""
    names: list[str] = field(default_factory=list)
    entries: list[FormattedEntry] = field(default_factory=list)
    run: str = ""
    dataset: str = ""
    model: str = ""
    control: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        id: unique on the page.
        headings: of the columns with the rows' names.
        legend: how to read it.
        notes: footnotes by letter.
        ranked: whether ranks are marked.
        prose: whether entries are sentences, which may be broken into lines.
    """

    id: str
    title: str
    headings: list[str]
    columns: list[Line]
    rows: list[Line]
    legend: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    ranked: bool = False
    prose: bool = False


@dataclass(frozen=True)
class PageRun:
    """One run, to be unfolded."""

    key: str
    seed: int
    status: str
    facts: Facts
    error: str | None


@dataclass(frozen=True)
class PageCell:
    """A cell with its runs, to be unfolded."""

    title: str
    dataset: str
    model: str
    tally: str
    settings: Facts
    runs: list[PageRun]


@dataclass(frozen=True)
class Environment:
    """Where runs were done."""

    title: str
    facts: Facts


def page_table(
    sheet: FormattedTable, *, controls: Collection[str] = (), prose: bool = False
) -> PageTable:
    """A laid-out table, its columns' names joined so that each column has one heading.

    Args:
        sheet: to be shown.
        controls: titles of those that stand among its models.
        prose: whether entries are sentences.
    """
    index, columns = sheet.frame.index, sheet.frame.columns
    return PageTable(
        id=sheet.name,
        title=sheet.heading,
        headings=[str(name or "") for name in index.names],
        columns=[
            Line(title=title, **_belongs(columns.names, label, controls))
            for title, label in zip(column_headings(columns, " · "), columns, strict=True)
        ],
        rows=[
            Line(
                names=[str(name) for name in _tuple(label)],
                entries=list(entries),
                **_belongs(index.names, label, controls),
            )
            for label, entries in zip(index, sheet.frame.to_numpy(), strict=True)
        ],
        legend=sheet.legend,
        notes=sheet.notes,
        ranked=sheet.ranked,
        prose=prose,
    )


def _tuple(label: Any) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


def _belongs(names: Iterable[Any], label: Any, controls: Collection[str]) -> dict[str, Any]:
    """What the filter knows a row or a column by, from its label."""
    levels = dict(zip(names, _tuple(label), strict=True))
    model = str(levels.get("Model", ""))
    control = model in controls
    return {
        "dataset": str(levels.get("Dataset", "")),
        "model": "" if control else model,
        "control": control,
    }


def counts(source: FigureSource) -> dict[str, int]:
    """Planned runs by what became of them."""
    states = Counter(run.record.status for run in _runs(source))
    planned = len(source.grid.cells) * source.grid.spec.seeds
    return {
        "runs planned": planned,
        "complete": states["complete"],
        "diverged": states["diverged"],
        "failed": states["failed"],
        "not run": sum(lacking for _, lacking in _not_run(source)),
    }


def protocol(source: FigureSource) -> Facts:
    """What all cells have in common, and how long it took."""
    runs = list(_runs(source))
    spec = source.grid.spec
    finished = sorted(run.record.finished_at for run in runs)
    hours = sum(sum(run.record.seconds.values()) for run in runs) / 3600
    data = {run.record.settings["dataset"]["name"]: run.record.data_digest for run in runs}
    return {
        "Cells": f"{len(source.grid.cells)}, {spec.seeds} seeds each",
        "Network": _listed(spec.network.model_dump()),
        "Training": _listed(spec.training.model_dump()),
        "Time": f"{hours:.2f} hours in all, summed over runs",
        "Finished": " to ".join(dict.fromkeys(f"{finished[i]:%Y-%m-%d}" for i in (0, -1))),
        **{f"Data: {name}": f"SHA-256 {digest}" for name, digest in data.items()},
    }


def environments(source: FigureSource) -> tuple[list[Environment], dict[str, int]]:
    """Every different environment among the runs, and the number (from 1) of each run's."""
    found: dict[str, list[StoredRun]] = {}
    for run in _runs(source):
        where = json.dumps(run.record.environment, sort_keys=True)
        found.setdefault(where, []).append(run)
    listed: list[Environment] = []
    numbers: dict[str, int] = {}
    for number, runs in enumerate(found.values(), start=1):
        numbers |= {run.record.key: number for run in runs}
        known = runs[0].record.environment
        facts = {name: _listed(value) for name, value in known.items()}
        if code := known.get("code"):
            changes = ", with uncommitted changes" if code["dirty"] else ""
            facts["code"] = f"commit {code['commit']}{changes}"
        hardware = known.get("gpu") or known.get("cpu") or "unknown hardware"
        listed.append(Environment(f"{hardware}, {_counted(len(runs), 'run')}", facts))
    return listed, numbers


def unsuccessful(source: FigureSource) -> PageTable:
    """Every diverged and failed run, and cells with runs that were never done."""
    rows = [
        _row(
            source,
            names,
            str(run.record.seed),
            run.record.status,
            _reason(run),
            run=run.record.key,
        )
        for names in _cells(source)
        for run in source.runs_of(names)
        if run.record.status != "complete"
    ]
    rows += [
        _row(source, names, "–", "not run", _counted(lacking, "seed"))
        for names, lacking in _not_run(source)
        if lacking
    ]
    columns = [Line(title=title) for title in ("Seed", "Status", "Reason")]
    title = "Runs without a result"
    return PageTable("unsuccessful", title, _HEADINGS, columns, rows, prose=True)


def fairness(source: FigureSource) -> PageTable:
    """What every cell cost, and how far its training came."""
    columns = ["n", "Parameters", "Epochs", "First loss", "Last loss", "Reduction"]
    columns += ["Training (s)", "Scoring (s)"]
    rows = []
    for names in _cells(source):
        runs = [run.record for run in source.runs_of(names) if run.record.status == "complete"]
        if not runs:
            continue
        losses = [run.history["loss"] for run in runs if run.history.get("loss")]
        first, last = (
            statistics.fmean(loss[place] for loss in losses) if losses else None
            for place in (0, -1)
        )
        reduced = None if not first or last is None else 1 - last / first
        rows.append(
            _row(
                source,
                names,
                str(len(runs)),
                " to ".join(f"{n:,}" for n in sorted({run.n_parameters for run in runs})),
                " to ".join(map(str, sorted({len(loss) for loss in losses}))) or "–",
                "–" if first is None else format_number(first, ".1f"),
                "–" if last is None else format_number(last, ".1f"),
                "–" if reduced is None else f"{format_number(100 * reduced, '.1f')} %",
                *(
                    f"{statistics.fmean(run.seconds.get(stage, 0.0) for run in runs):.1f}"
                    for stage in ("training", "scoring")
                ),
            )
        )
    return PageTable(
        "costs",
        "Parameters, training and time of each cell",
        _HEADINGS,
        [Line(title=title) for title in columns],
        rows,
        legend="Means over complete runs; losses of the first and the last epoch. Losses of "
        "different models are different sums of terms: their reduction says whether a training "
        "came to rest, and does not compare models. Times were taken as the runs were done, side "
        "by side or not.",
    )


def commands(source: FigureSource) -> str:
    """What makes the same runs and the same page, with the plug-ins that the runs had."""
    used = [run.record.provenance.get("plugins", {}) for run in _runs(source)]
    names = dict.fromkeys(name for plugins in used for name in plugins)
    plugins = "".join(f" --plugin {shlex.quote(name)}" for name in names)
    return (
        f"hgmvae-bench run --grid grid.yaml --results results{plugins}\n"
        f"hgmvae-bench report --results results --output report.html{plugins}"
    )


def cells(source: FigureSource, environment_of: Mapping[str, int]) -> Iterator[PageCell]:
    """Every cell with its runs."""
    for names in _cells(source):
        runs = source.runs_of(names)
        states = Counter(run.record.status for run in runs)
        settings = source.cells[names].settings
        yield PageCell(
            title=f"{source.grid.dataset_title(names.dataset)}, "
            f"{source.grid.model_title(names.model)}, L = {names.latent_dim}",
            dataset=source.grid.dataset_title(names.dataset),
            model=source.grid.model_title(names.model),
            tally=", ".join(f"{n} {state}" for state, n in states.items()) or "not run",
            settings={name: _listed(value) for name, value in settings.items()},
            runs=[_page_run(run, environment_of) for run in runs],
        )


def _page_run(run: StoredRun, environment_of: Mapping[str, int]) -> PageRun:
    record = run.record
    facts: Facts = {}
    for name, recorded in run.metrics.items():
        value = recorded.missing if recorded.value is None else f"{recorded.value:.6g}"
        facts[METRICS[name].title if name in METRICS.names() else name] = value
    if record.history:
        facts["Loss terms, last epoch"] = _listed(
            {term: f"{values[-1]:.4g}" for term, values in record.history.items() if values}
        )
    facts |= {
        "Seconds": _listed({stage: f"{taken:.1f}" for stage, taken in record.seconds.items()}),
        "Memory, peak": _peaks(record.provenance.get("stages", {})),
        "Parameters": f"{record.n_parameters:,}",
        "Finished": f"{record.finished_at:%Y-%m-%d %H:%M:%S} UTC",
        "Environment": environment_of[record.key],
        "Record": f"{record.key}.json, SHA-256 {run.sha256}",
    }
    return PageRun(record.key, record.seed, record.status, facts, record.error)


def _peaks(stages: Mapping[str, Mapping[str, Any]]) -> str:
    peaks = {stage: cost.get("peak_bytes") for stage, cost in stages.items()}
    return _listed({stage: f"{peak / 2**30:.2f} GiB" for stage, peak in peaks.items() if peak})


_HEADINGS = ["Dataset", "Model", "L"]


def _row(source: FigureSource, names: CellNames, *entries: str, run: str = "") -> Line:
    dataset = source.grid.dataset_title(names.dataset)
    model = source.grid.model_title(names.model)
    return Line(
        names=[dataset, model, str(names.latent_dim)],
        entries=[FormattedEntry(entry) for entry in entries],
        run=run,
        dataset=dataset,
        model=model,
    )


def _cells(source: FigureSource) -> list[CellNames]:
    """Each cell once, by the first of its names."""
    seen: dict[str, CellNames] = {}
    for names, cell in source.cells.items():
        seen.setdefault(cell.identity, names)
    return list(seen.values())


def _runs(source: FigureSource) -> Iterator[StoredRun]:
    for names in _cells(source):
        yield from source.runs_of(names)


def _not_run(source: FigureSource) -> Iterator[tuple[CellNames, int]]:
    for names in _cells(source):
        yield names, max(0, source.grid.spec.seeds - len(source.runs_of(names)))


def _reason(run: StoredRun) -> str:
    """The last line of an error: what a traceback ends with."""
    lines = (run.record.error or "").strip().splitlines()
    return lines[-1] if lines else "no reason recorded"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(value: Any) -> str:
    """A value of JSON in a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_listed(each)}" for name, each in value.items()) or "–"
    return "–" if value is None else str(value)
