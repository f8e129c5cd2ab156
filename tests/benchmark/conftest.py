import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from hgmvae_bench.analysis.published import values_by_cell
from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun

# pandas before 3 reads the last digits of numbers quickly rather than exactly unless it is told to.
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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str, tiny_text: str) -> Path:
    """A folder with ``tiny.yaml``, what `hgmvae-bench run` left of it in ``r``, and its ``stdout``.

    Run once for all processes of pytest: to be read; who changes it changes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-run"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = tmp_path_factory.mktemp("tiny-run")
            (making / "tiny.yaml").write_text(tiny_text)
            command = Path(sys.executable).with_name("hgmvae-bench")
            done = subprocess.run(
                [command, "run", "--grid", "tiny.yaml", "--results", "r"],
                capture_output=True,
                text=True,
                cwd=making,
                env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
            )
            assert done.returncode == 0, done.stderr
            (making / "stdout").write_text(done.stdout)
            making.rename(folder)
    return folder


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
    """``pandas.read_csv`` that gives the very numbers that were written."""
    return partial(pd.read_csv, dtype={"table": str}, **EXACTLY)
