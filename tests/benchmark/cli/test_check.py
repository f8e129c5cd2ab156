"""``hgmvae-bench check`` as a user calls it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hgmvae_bench.analysis.regression.baseline import load_baseline, save_baseline

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")
CHECK = ("check", "--grid", "tiny.yaml", "--baseline", "b.json", "--results", "r")


def cli(*arguments, cwd):
    return subprocess.run(
        [HGMVAE_BENCH, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, tiny_run):
    """A folder with the tiny grid's file, its runs, and a baseline of them."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("check") / "tiny")
    return folder, cli(*CHECK, "--update", cwd=folder)


def test_a_baseline_is_written_and_its_own_runs_pass(baseline):
    folder, outcome = baseline
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.endswith("2 cells, 2 seeds each: b.json\n")
    assert outcome.stderr == "warning: a baseline of fewer than 5 seeds finds gross shifts only\n"
    outcome = cli(*CHECK, cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert "passed: " in outcome.stdout
    assert "so that the check finds little" in outcome.stdout
    assert "4 of 4 runs had been done before and say nothing of what changed" in outcome.stdout


def test_a_shift_is_confirmed_by_further_seeds_and_exits_with_1(baseline):
    folder, _ = baseline
    old = load_baseline(folder / "b.json")
    vae = old.cells[0]
    measures = {**vae.measures, "sc": [100.0, 100.001]}
    cells = [vae.model_copy(update={"measures": measures}), *old.cells[1:]]
    save_baseline(old.model_copy(update={"cells": cells}), folder / "shifted.json")
    outcome = cli(*CHECK[:4], "shifted.json", *CHECK[5:], "--model", "vae", cwd=folder)
    assert outcome.returncode == 1
    assert "1 suspected; as many seeds again of 1 cell:\n4 runs: 2 to train" in outcome.stdout
    assert "shifted: digits_vae_L2: sc: old 100 ± 0.0007" in outcome.stdout
    assert len(list((folder / "r" / "records").iterdir())) == 4 + 2


def test_a_baseline_fits_runs_in_a_precision_that_is_asked_for(baseline):
    """It is held against them: what is refused is a format that no CPU has."""
    folder, _ = baseline
    outcome = cli(*CHECK, "--precision", "tf32", "--device", "cpu", cwd=folder)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("error: precision tf32 is not supported on this cpu")


def test_a_baseline_of_other_settings_exits_with_2_before_training(baseline, tiny_text):
    folder, _ = baseline
    (folder / "more.yaml").write_text(tiny_text.replace("epochs: 1", "epochs: 2"))
    outcome = cli("check", "--grid", "more.yaml", "--baseline", "b.json", cwd=folder)
    assert outcome.returncode == 2
    assert "digits_vae_L2: training.epochs was 1, is 2" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (folder / "results").exists()
