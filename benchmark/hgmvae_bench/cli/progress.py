"""Progress of a grid: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from hgmvae_bench.execution.plan import ExecutionPlan
from hgmvae_bench.execution.runner import Reporter
from hgmvae_bench.execution.survey import Survey
from hgmvae_bench.execution.tasks import (
    EpochEnded,
    Event,
    Finished,
    FinishedElsewhere,
    Requeued,
    Started,
)
from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import first_few, pluralize

MAX_UNSUCCESSFUL_LINES = 20

SECONDS_BETWEEN_EPOCH_LINES = 30
"""Minimum time between two progress lines of one run."""


@contextmanager
def progress(grid: Grid, folder: Path, *, quiet: bool = False) -> Iterator[Reporter]:
    """Yield a reporter that fits the output: bars on a terminal, lines in a file or pipe.

    Args:
        grid: grid with the names of the runs.
        folder: results folder with the logs.
        quiet: whether to print only runs that failed, diverged or lack a metric.
    """
    console = Console()
    event_text = EventText(grid, folder)
    if quiet:
        with _only_warnings():
            yield QuietReporter(console, event_text)
    elif console.is_terminal:
        with BarReporter(console, event_text) as reporter:
            yield reporter
    else:
        yield LineReporter(console, event_text)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Leave out the package's messages that are no warnings."""
    log = logging.getLogger("hgmvae_bench")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class EventText:
    """Readable text of events.

    Args:
        grid: grid with the names of the cells.
        folder: results folder with the logs.
    """

    def __init__(self, grid: Grid, folder: Path) -> None:
        self._grid, self._store = grid, Store(folder)

    def name(self, run: Run) -> str:
        """Return the readable name of a run, such as ``mnist, HGMVAE-U, L = 8, seed 3``."""
        return f"{self._grid.cell_name(run.cell)}, seed {run.seed}"

    def outcome(self, event: Finished | FinishedElsewhere) -> str:
        """One line on a recorded run, with its reason and log unless it is complete."""
        name = self.name(event.run)
        if isinstance(event, FinishedElsewhere):
            return f"{name}: finished by another process"
        record, seconds = event.record, ""
        if isinstance(record, Record):
            seconds = f" in {sum(record.seconds.values()):.1f} s"
            if record.status != "complete":
                return f"{name}: {self.failure(record)}"
        by_reason: dict[str, list[str]] = {}
        for metric, value in record.metrics.items():
            if value.missing:
                by_reason.setdefault(value.missing, []).append(metric)
        missing = [f"; {', '.join(names)} missing ({why})" for why, names in by_reason.items()]
        return f"{name}: complete{seconds}{''.join(missing)}"

    def failure(self, record: Record) -> str:
        """Status, reason and log of a run that failed or diverged."""
        log = self._store.log_name(record.key)
        place = f" (log: {self._store.root / log})" if log else ""
        return f"{record.status}: {record.short_error}{place}"

    def unsuccessful(self, runs: Iterable[StoredRun]) -> list[str]:
        """A line for each recorded run that failed or diverged."""
        names = {cell.identity: self._grid.cell_name(cell) for cell in self._grid.cells}
        lines = [
            f"{names[run.record.cell]}, seed {run.record.seed}: {self.failure(run.record)}"
            for run in runs
            if run.record.status != "complete"
        ]
        return first_few(lines, MAX_UNSUCCESSFUL_LINES)


class QuietReporter:
    """Prints only runs that failed, diverged or lack a metric."""

    def __init__(self, console: Console, event_text: EventText) -> None:
        self._console, self._event_text = console, event_text

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Print nothing."""

    def on_event(self, event: Event) -> None:
        """Print a run that failed, diverged or lacks a metric."""
        if isinstance(event, Finished) and not _is_clean(event.record):
            self._console.print(escape(self._event_text.outcome(event)), soft_wrap=True)


class LineReporter:
    """Prints a line when a run starts and ends, and at most every 30 s one on its progress."""

    def __init__(self, console: Console, event_text: EventText) -> None:
        self._console, self._event_text = console, event_text
        self._total = self._finished = 0
        self._last_line: dict[str, float] = {}

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Print how much there is to train and score."""
        self._total, self._finished = len(plan.tasks), 0
        for line in (plan_summary(plan), *self._event_text.unsuccessful(plan.unsuccessful)):
            self._print(line)

    def on_event(self, event: Event) -> None:
        """Print the start, the progress or the outcome of a run."""
        key, name, now = event.run.key, self._event_text.name(event.run), time.monotonic()
        if isinstance(event, Started):
            self._last_line[key] = now
            self._print(f"{name}: started")
        elif isinstance(event, EpochEnded):
            if now - self._last_line[key] > SECONDS_BETWEEN_EPOCH_LINES:
                self._last_line[key] = now
                epochs = event.run.cell.training.epochs
                self._print(f"{name}: epoch {event.epoch} of {epochs}{_loss(event)}")
        elif isinstance(event, Requeued):
            self._print(f"{name}: re-queued: {event.reason}")
        else:
            self._finished += 1
            self._print(f"[{self._finished}/{self._total}] {self._event_text.outcome(event)}")

    def _print(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)


class BarReporter:
    """Shows a bar for the grid, with the remaining time, and one for each running run."""

    def __init__(self, console: Console, event_text: EventText) -> None:
        self._event_text = event_text
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._finished_shares: dict[str, float] = {}
        self._grid_bar = self._progress.add_task("runs", total=None, visible=False, status="")
        self._start = time.monotonic()
        self._total = self._finished = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Show the number of runs to train and score."""
        for line in (plan_summary(plan), *self._event_text.unsuccessful(plan.unsuccessful)):
            self._print(line)
        self._total, self._finished = len(plan.tasks), 0
        self._progress.reset(self._grid_bar, total=self._total, visible=True)

    def on_event(self, event: Event) -> None:
        """Move the bars; print a run that failed, diverged or lacks a metric."""
        key = event.run.key
        if isinstance(event, Started):
            epochs = event.run.cell.training.epochs
            name = escape(self._event_text.name(event.run))
            self._bars[key] = self._progress.add_task(name, total=epochs, status="")
        elif isinstance(event, EpochEnded):
            self._progress.update(self._bars[key], completed=event.epoch, status=_loss(event))
            self._finished_shares[key] = event.epoch / event.run.cell.training.epochs
        else:
            self._remove_bar(event)
        self._update_total()

    def _remove_bar(self, event: Event) -> None:
        self._finished_shares.pop(event.run.key, None)
        if event.run.key in self._bars:
            self._progress.remove_task(self._bars.pop(event.run.key))
        if isinstance(event, Requeued):
            self._print(f"{self._event_text.name(event.run)}: re-queued: {event.reason}")
        else:
            self._finished += 1
        if isinstance(event, Finished) and not _is_clean(event.record):
            self._print(self._event_text.outcome(event))

    def _update_total(self) -> None:
        finished = self._finished + sum(self._finished_shares.values())
        elapsed = time.monotonic() - self._start
        status = ""
        if finished:
            remaining = elapsed * (self._total - finished) / finished
            status = f"{format_duration(remaining)} left"
        self._progress.update(self._grid_bar, completed=self._finished, status=status)

    def _print(self, text: str) -> None:
        self._progress.console.print(escape(text), highlight=False)


def plan_summary(plan: ExecutionPlan) -> str:
    """One line on what a grid still needs."""
    counts = [f"{len(plan.train)} to train", f"{len(plan.score)} to score"]
    if not plan.tasks:
        counts = ["nothing to train"]
    counts.append(f"{len(plan.complete)} complete")
    if plan.unsuccessful:
        counts.append(f"{len(plan.unsuccessful)} failed or diverged (--retry-failed repeats them)")
    return f"{pluralize(plan.total, 'run')}: {', '.join(counts)}"


def print_plan(survey: Survey) -> None:
    """Print what a grid still needs: a line per cell, the totals, and missing data and weights."""
    typer.echo(format_survey(survey), nl=False)


def format_survey(survey: Survey) -> str:
    """Format what a grid still needs as text."""
    rows: list[tuple[str, ...]] = [
        ("dataset", "model", "L", "complete", "missing", "to score", "failed", "a run", "from")
    ]
    for cell in survey.cells:
        seconds = "" if cell.seconds is None else format_duration(cell.seconds)
        counts = (cell.complete, cell.missing, cell.to_score, cell.unsuccessful)
        names = (cell.dataset, cell.model, str(cell.cell.latent_dim), *map(str, counts))
        rows.append((*names, seconds, cell.basis if cell.missing else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if 2 <= i <= 7 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    total = survey.totals
    unknown = f", without {pluralize(survey.not_estimated, 'run')} that cannot be estimated"
    lines += [
        "",
        f"{pluralize(len(survey.cells), 'cell')}: {pluralize(total['complete'], 'run')} complete, "
        f"{total['missing']} missing, {total['to_score']} to score, "
        f"{total['unsuccessful']} failed or diverged",
        f"time for the missing runs, {survey.workers} at a time: about "
        f"{format_duration(survey.seconds)}{unknown if survey.not_estimated else ''}",
        f"disk for the missing runs: about {survey.bytes / 1e6:,.0f} MB",
    ]
    unsuccessful = [
        f"{run.record.key}: {run.record.status}: {run.record.short_error}"
        + (f" ({run.log})" if run.log else "")
        for run in survey.unsuccessful
    ]
    lines += first_few(unsuccessful, MAX_UNSUCCESSFUL_LINES)
    for kind, missing in (("data", survey.missing_data), ("weights", survey.missing_weights)):
        lines += [f"missing {kind}: {name}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines) + "\n"


def format_duration(seconds: float) -> str:
    """Format a duration, such as ``3 min 05 s`` or ``2 h 07 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _is_clean(record: Record | ScoreRecord) -> bool:
    """Whether a run is complete and has every metric."""
    if isinstance(record, Record) and record.status != "complete":
        return False
    return not any(value.missing for value in record.metrics.values())


def _loss(event: EpochEnded) -> str:
    return f"  loss {event.terms['loss']:.4g}" if "loss" in event.terms else ""
