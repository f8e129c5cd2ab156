"""What the user sees of a running grid: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from hgmvae_bench.execution.estimate import Survey
from hgmvae_bench.execution.plan import ExecutionPlan, UnsuccessfulRun
from hgmvae_bench.execution.runner import Reporter
from hgmvae_bench.execution.tasks import (
    EpochEnded,
    Event,
    Finished,
    FinishedElsewhere,
    Requeued,
    Started,
)
from hgmvae_bench.storage.schema import Record, ScoreRecord
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.text import pluralize

NOTHING_TO_DO = "nothing to train"
MAX_UNSUCCESSFUL = 20


def summary(plan: ExecutionPlan) -> str:
    """One line on what a grid still needs."""
    counts = [
        f"{len(plan.train)} to train",
        f"{len(plan.score)} to score",
        f"{len(plan.complete)} done",
    ]
    if plan.unsuccessful:
        counts.append(
            f"{len(plan.unsuccessful)} failed or diverged (--retry-failed does them again)"
        )
    if not plan.tasks:
        counts[0:2] = [NOTHING_TO_DO]
    return f"{pluralize(plan.total, 'run')}: {', '.join(counts)}"


def unsuccessful_lines(runs: Sequence[UnsuccessfulRun]) -> list[str]:
    """A line for each run that is recorded as failed or diverged: key, reason and log."""
    lines = [f"  {run}" for run in runs[:MAX_UNSUCCESSFUL]]
    more = len(runs) - MAX_UNSUCCESSFUL
    return [*lines, f"  and {more} more"] if more > 0 else lines


def plan_text(survey: Survey) -> str:
    """A table of what a grid still needs, a line a cell, with the sums and what is lacking."""
    rows: list[tuple[str, ...]] = [
        ("dataset", "model", "L", "done", "missing", "to score", "failed", "a run", "from")
    ]
    for plan in survey.cells:
        time_of_run = "" if plan.seconds is None else _duration(plan.seconds)
        counts = (plan.complete, plan.missing, plan.to_score, plan.unsuccessful)
        named = (plan.dataset, plan.model, str(plan.cell.latent_dim), *map(str, counts))
        rows.append((*named, time_of_run, plan.basis if plan.missing else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if 2 <= i <= 7 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    total = survey.as_json()["total"]
    lines += [
        "",
        f"{pluralize(len(survey.cells), 'cell')}: {pluralize(total['complete'], 'run')} done, "
        f"{total['missing']} missing, "
        f"{total['to_score']} to score, {total['unsuccessful']} failed or diverged",
    ]
    rest = f", without {pluralize(survey.not_estimated, 'run')} that cannot be estimated"
    lines += [
        f"time for what is missing, {survey.workers} side by side: about "
        f"{_duration(survey.seconds)}{rest if survey.not_estimated else ''}",
        f"disk for what is missing: about {survey.bytes / 1e6:,.0f} MB",
    ]
    lines += unsuccessful_lines(survey.unsuccessful)
    for kind, lacking in (("data", survey.missing_data), ("weights", survey.missing_weights)):
        lines += [f"{kind} not here: {name}: {reason}" for name, reason in lacking.items()]
    return "\n".join(lines) + "\n"


def _unsuccessful(plan: ExecutionPlan, store: Store) -> list[str]:
    return unsuccessful_lines([UnsuccessfulRun.of(run.record, store) for run in plan.unsuccessful])


def outcome(event: Finished | FinishedElsewhere, store: Store) -> str:
    """One line on a run that has just been recorded, with its log if that says anything."""
    if isinstance(event, FinishedElsewhere):
        return f"{event.run.key}: done by another process"
    record, seconds = event.record, ""
    if isinstance(record, Record):
        seconds = f" in {sum(record.seconds.values()):.1f} s"
        if record.status != "complete":
            return str(UnsuccessfulRun.of(record, store))
    missing = [f"; {name} missing ({m.missing})" for name, m in record.metrics.items() if m.missing]
    return f"{record.key}: complete{seconds}{''.join(missing)}"


class PlainReporter:
    """A line when a run begins, one when it ends, and now and then one in between."""

    SECONDS_BETWEEN_EPOCHS = 30

    def __init__(self, console: Console, store: Store) -> None:
        self._console, self._store = console, store
        self._total = self._finished = 0
        self._told_at: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Say what there is to do."""
        self._total, self._finished = len(plan.tasks), 0
        self._line(summary(plan))
        for line in _unsuccessful(plan, self._store):
            self._line(line)

    def on_event(self, event: Event) -> None:
        """Say that a run begins, how far a long one is, or how it ended."""
        key, now = event.run.key, time.monotonic()
        if isinstance(event, Started):
            self._told_at[key] = now
            self._line(f"{key}: started")
        elif isinstance(event, EpochEnded):
            if now - self._told_at[key] > self.SECONDS_BETWEEN_EPOCHS:
                self._told_at[key] = now
                epochs = event.run.cell.training.epochs
                self._line(f"{key}: epoch {event.epoch} of {epochs}{_loss(event)}")
        elif isinstance(event, Requeued):
            self._line(f"{key}: {event.reason}")
        else:
            self._finished += 1
            self._line(f"[{self._finished}/{self._total}] {outcome(event, self._store)}")

    def _line(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)


class LiveReporter:
    """A bar for the grid, with the time left, and one for each run under way."""

    def __init__(self, console: Console, store: Store) -> None:
        self._store = store
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}
        self._grid = self._progress.add_task("runs", total=None, visible=False, status="")
        self._started_at = time.monotonic()
        self._total = self._finished = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Show how many runs there are to do."""
        for line in (summary(plan), *_unsuccessful(plan, self._store)):
            self._progress.console.print(escape(line), highlight=False)
        self._total, self._finished = len(plan.tasks), 0
        self._progress.reset(self._grid, total=self._total, visible=True)

    def on_event(self, event: Event) -> None:
        """Move the bars; tell of a run that did not end well or lacks a metric."""
        key = event.run.key
        if isinstance(event, Started):
            name = escape(f"{event.run.cell.slug} seed {event.run.seed}")
            epochs = event.run.cell.training.epochs
            self._bars[key] = self._progress.add_task(name, total=epochs, status="")
        elif isinstance(event, EpochEnded):
            self._progress.update(self._bars[key], completed=event.epoch, status=_loss(event))
            self._shares[key] = event.epoch / event.run.cell.training.epochs
        else:
            self._shares.pop(key, None)
            if key in self._bars:
                self._progress.remove_task(self._bars.pop(key))
            if isinstance(event, Requeued):
                self._progress.console.print(escape(f"{key}: {event.reason}"), highlight=False)
            else:
                self._finished += 1
            if isinstance(event, Finished) and not _clean(event.record):
                self._progress.console.print(escape(outcome(event, self._store)), highlight=False)
        done = self._finished + sum(self._shares.values())
        left = (time.monotonic() - self._started_at) * (self._total - done) / done if done else None
        status = f"{_duration(left)} left" if left is not None else ""
        self._progress.update(self._grid, completed=self._finished, status=status)


class Reporters:
    """Tells several reporters, in turn."""

    def __init__(self, reporters: Iterable[Reporter]) -> None:
        self._reporters = list(reporters)

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Tell all what there is to do."""
        for reporter in self._reporters:
            reporter.on_plan(plan)

    def on_event(self, event: Event) -> None:
        """Tell all what happened."""
        for reporter in self._reporters:
            reporter.on_event(event)


def _clean(record: Record | ScoreRecord) -> bool:
    """Whether there is nothing to tell of a recorded run."""
    if isinstance(record, Record) and record.status != "complete":
        return False
    return not any(value.missing for value in record.metrics.values())


def reporter(console: Console, store: Store) -> PlainReporter | LiveReporter:
    """The reporter that fits the console, for runs that the store gets."""
    kind = LiveReporter if console.is_terminal else PlainReporter
    return kind(console, store)


def _loss(event: EpochEnded) -> str:
    return f"  loss {event.terms['loss']:.4g}" if "loss" in event.terms else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
