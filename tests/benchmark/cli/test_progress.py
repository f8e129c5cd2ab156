"""Progress of a grid: lines in a file or pipe, bars on a terminal."""

import io
import re

import pytest
from rich.console import Console

from hgmvae_bench.cli import progress
from hgmvae_bench.cli.options import parse_duration
from hgmvae_bench.cli.progress import BarReporter, EventText, LineReporter
from hgmvae_bench.execution.plan import ExecutionPlan
from hgmvae_bench.execution.tasks import EpochEnded, Finished, Requeued, Started, Task
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import Record


class Clock:
    """Replacement for `time` in the module: seconds that a test sets."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def grid(tiny_text):
    return parse_grid(tiny_text.replace("epochs: 1", "epochs: 4"), "tiny.yaml")


@pytest.fixture
def runs(grid):
    return [Run(grid.cell("digits", model, 2), 0, "d") for model in ("vae", "wae-imq")]


def console(*, terminal):
    return Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)


def last_frame(console):
    """The lines that remain on a terminal, without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).rstrip().splitlines()


def test_a_run_has_at_most_one_line_on_its_epochs_every_30_seconds(grid, runs, tmp_path, clock):
    out, [run, _] = console(terminal=False), runs
    reporter = LineReporter(out, EventText(grid, tmp_path))
    reporter.on_plan(ExecutionPlan(train=[Task(run, ["sc"])]))
    reporter.on_event(Started(run))
    for epoch, clock.now in ((1, 20.0), (2, 40.0), (3, 60.0), (4, 80.0)):
        reporter.on_event(EpochEnded(run, epoch, {"loss": 10.0 / epoch}))
    reporter.on_event(Requeued(run, "stopped"))
    reporter.on_event(Finished(run, Record.of(run, status="complete", seconds={"train": 80.0})))
    name = "digits, VAE, L = 2, seed 0"
    assert out.file.getvalue().splitlines() == [
        "1 run: 1 to train, 0 to score, 0 complete",
        f"{name}: started",
        f"{name}: epoch 2 of 4  loss 5",
        f"{name}: epoch 4 of 4  loss 2.5",
        f"{name}: re-queued: stopped",
        f"[1/1] {name}: complete in 80.0 s",
    ]


def test_bars_show_the_epochs_and_the_remaining_time(grid, runs, tmp_path, clock):
    out, [run, _] = console(terminal=True), runs
    with BarReporter(out, EventText(grid, tmp_path)) as reporter:
        reporter.on_plan(ExecutionPlan(train=[Task(run, ["sc"]) for run in runs]))
        reporter.on_event(Started(run))
        clock.now = 60.0
        reporter.on_event(EpochEnded(run, 1, {"loss": 2.5}))
    *_, whole, bar = last_frame(out)
    # A quarter of one run of two in 60 s: 1.75 runs are left.
    assert re.search(r"runs .* 0/2 7 min 00 s left", whole)
    assert re.search(r"digits, VAE, L = 2, seed 0 .* 1/4 +loss 2\.5", bar)


def test_above_the_bars_are_lines_on_problems_alone(grid, runs, tmp_path, clock):
    out, [first, second] = console(terminal=True), runs
    with BarReporter(out, EventText(grid, tmp_path)) as reporter:
        reporter.on_plan(ExecutionPlan(train=[Task(run, ["sc"]) for run in runs]))
        for run in runs:
            reporter.on_event(Started(run))
        reporter.on_event(Finished(first, Record.of(first, status="complete")))
        reporter.on_event(Requeued(second, "stopped"))
        reporter.on_event(Finished(second, Record.of(second, status="failed", error="E: no")))
    printed = out.file.getvalue()
    assert "digits, WAE-IMQ, L = 2, seed 0: re-queued: stopped" in printed
    assert "digits, WAE-IMQ, L = 2, seed 0: failed: E: no" in printed
    assert "digits, VAE, L = 2, seed 0: complete" not in printed
    assert re.search(r"runs .* 2/2", last_frame(out)[-1])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), (" 12h ", 43_200), ("2d", 172_800)]
)
def test_durations_are_read_in_seconds(text, seconds):
    assert parse_duration(text) == seconds
