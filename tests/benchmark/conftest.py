import io
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from hgmvae_bench.analysis.published import values_by_cell
from hgmvae_bench.cli import main
from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun

# By default, pandas before 3 reads numbers quickly, and their last digits are not exact.
EXACTLY = {"float_precision": "round_trip"} if int(pd.__version__.partition(".")[0]) < 3 else {}

_MEAN = """
class Mean:
    title, reference, direction, cost, needs = "Mean", "none", "lower", "cheap", ("codes",)
    range = (float("-inf"), float("inf"))

    def compute(self, outputs):
        return float(outputs.test_codes.mean())

    def fingerprint(self, outputs):
        return {"n_images": len(outputs.test_images)}

METRICS = {"mean-code": Mean()}
"""

_ODD = """
import time, warnings, torch
from hgmvae_bench.plugins.registry import MODELS as KNOWN

class Odd:
    title, reference, settings = "Odd", "none", {"way": "well"}
    def build(self, *, settings, **rest):
        model = KNOWN["vae"].build(settings={}, **rest)
        print("a word from the model")
        warnings.warn("a warning from the model")
        if settings["way"] == "hangs":
            time.sleep(1000)
        if settings["way"] == "crashes":
            import ctypes
            ctypes.string_at(0)
        if settings["way"] == "out-of-memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        if settings["way"] == "raises":
            raise ValueError("no such thing")
        return model

MODELS = {"odd": Odd()}
"""


def _published_runs(grid: Grid, noise: float, seeds: int = 5) -> list[StoredRun]:
    """Runs of the grid ``paper`` as they would be if the published values were true.

    Each metric at its published value times 1 + ``noise`` · normal; Table 3 before Table 5.
    """
    rng = np.random.default_rng(0)
    runs = []
    for cell, metrics in grid.cells.items():
        for seed in range(seeds):
            values = {}
            for metric in metrics:
                known = values_by_cell()[cell.dataset, metric, cell.model, cell.latent_dim]
                value, _ = next(iter(known.values()))
                value *= 1 + noise * rng.normal()
                values[metric] = MetricValue(value=value, fingerprint={"split": "test"})
            run = Run(cell, seed, f"data of {cell.dataset}")
            runs.append(StoredRun(Record.of(run, status="complete"), run.key, values))
    return runs


@pytest.fixture(scope="session")
def published_runs() -> Callable[..., list[StoredRun]]:
    return _published_runs


@dataclass(frozen=True)
class CommandOutcome:
    """Exit status and output of a command."""

    exit_status: int
    stdout: str
    stderr: str


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run_command(
    *arguments: object,
    cwd: Path | None = None,
    terminal: bool = False,
    columns: int = 200,
    **environment: str | None,
) -> CommandOutcome:
    stream = _Terminal if terminal else io.StringIO
    out, err = stream(), stream()
    words = [str(argument) for argument in arguments]
    variables = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm", **environment}
    log = logging.getLogger("hgmvae_bench")
    handlers, level = log.handlers, log.level
    with (
        mock.patch.dict(os.environ, {k: v for k, v in variables.items() if v is not None}),
        mock.patch.object(sys, "argv", ["hgmvae-bench", *words]),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        for name in (name for name, value in variables.items() if value is None):
            os.environ.pop(name, None)
        try:
            main(words)
        except SystemExit as end:
            status = end.code or 0
        finally:
            log.handlers, log.level = handlers, level
    assert isinstance(status, int)
    return CommandOutcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli() -> Callable[..., CommandOutcome]:
    """Function that executes ``hgmvae-bench`` in this process, which has imported torch.

    Its arguments are those of the command line, the working folder ``cwd``, whether the output is a
    ``terminal``, its number of ``columns``, and environment variables (None removes one).
    """
    return _run_command


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str, tiny_text: str) -> Path:
    """Folder with ``tiny.yaml``, its results ``r``, and the ``stdout`` of `hgmvae-bench run`.

    All processes of pytest share it: a test that changes it needs a copy.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-run"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial_folder = tmp_path_factory.mktemp("tiny-run")
            (partial_folder / "tiny.yaml").write_text(tiny_text)
            outcome = _run_command(
                *("run", "--grid", "tiny.yaml", "--results", "r"), cwd=partial_folder
            )
            assert outcome.exit_status == 0, outcome.stderr
            (partial_folder / "stdout").write_text(outcome.stdout)
            partial_folder.rename(folder)
    return folder


@pytest.fixture
def tiny(tiny_run: Path, tmp_path: Path) -> Path:
    """Copy of ``tiny_run`` that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "tiny")


@pytest.fixture(scope="session")
def mean_plugin() -> str:
    """Code of a metric ``mean-code``."""
    return _MEAN


@pytest.fixture(scope="session")
def odd_plugin() -> str:
    """Code of a model ``odd`` whose setting ``way`` says how its building ends."""
    return _ODD


@pytest.fixture(scope="session")
def odd_text(tiny_text: str) -> Callable[..., str]:
    """The tiny grid with one seed of these models; one that is not ``vae`` is a way of ``odd``."""

    def text(*models: str) -> str:
        ways = "".join(
            f"  {way}: {{ model: odd, settings: {{ way: {way} }} }}\n"
            for way in models
            if way != "vae"
        )
        return (
            tiny_text.replace("tables:", f"models:\n{ways}tables:", 1)
            .replace("[vae, wae-imq]", f"[{', '.join(models)}]")
            .replace("seeds: 2", "seeds: 1")
        )

    return text


@pytest.fixture(scope="session")
def read_csv():
    """``pandas.read_csv`` that returns exactly the numbers that were written."""
    return partial(pd.read_csv, dtype={"table": str}, **EXACTLY)
