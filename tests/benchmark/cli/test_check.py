"""``hgmvae-bench check``: baselines are written, confirmed, and refused if settings differ."""

import shutil

import pytest

from hgmvae_bench.analysis.regression.baseline import load_baseline, save_baseline
from hgmvae_bench.execution import backends

CHECK = ("check", "--grid", "tiny.yaml", "--baseline", "b.json", "--results", "r")


@pytest.fixture(scope="module")
def baseline(cli, tiny_run, tmp_path_factory):
    """Folder of the tiny grid with a baseline of its runs, and the outcome of writing it."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("check") / "tiny")
    return folder, cli(*CHECK, "--update", cwd=folder)


def test_a_baseline_is_written_and_its_own_runs_pass(cli, baseline):
    folder, outcome = baseline
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.endswith("2 cells, 2 seeds each: b.json\n")
    assert outcome.stderr.startswith("warning: a baseline of fewer than 5 seeds")
    outcome = cli(*CHECK, cwd=folder)
    assert outcome.exit_status == 0, outcome.stderr
    assert "passed: " in outcome.stdout
    assert "4 of 4 runs were recorded before this check" in outcome.stdout


def test_a_shift_is_confirmed_by_further_seeds_and_exits_with_1(cli, baseline):
    folder, _ = baseline
    old = load_baseline(folder / "b.json")
    vae = old.cells[0]
    measures = {**vae.measures, "sc": [100.0, 100.001]}
    cells = [vae.model_copy(update={"measures": measures}), *old.cells[1:]]
    save_baseline(old.model_copy(update={"cells": cells}), folder / "shifted.json")
    outcome = cli(*CHECK[:4], "shifted.json", *CHECK[5:], "--model", "vae", cwd=folder)
    assert outcome.exit_status == 1
    assert "1 suspected shifts; running 1 cell with 4 seeds" in outcome.stderr
    assert "4 runs: 2 to train" in outcome.stdout
    assert "shifted: digits_vae_L2: sc: old 100 ± 0.0007" in outcome.stdout
    assert len(list((folder / "r" / "records").iterdir())) == 4 + 2


def test_the_precision_option_reaches_the_runs(cli, baseline):
    """No CPU has the format, so the runs are refused after the comparison of settings."""
    folder, _ = baseline
    outcome = cli(*CHECK, "--precision", "tf32", "--device", "cpu", cwd=folder)
    assert outcome.exit_status == 2
    assert outcome.stderr.startswith("error: precision tf32 is not supported on this cpu")


def test_runs_in_another_precision_are_reported_by_name(cli, baseline, monkeypatch):
    """A CPU without bf16 refuses the run in its worker, after its start."""
    folder, _ = baseline
    monkeypatch.setattr(backends, "check_precision", lambda *_: None)
    options = ("--precision", "bf16", "--device", "cpu", "--model", "vae")
    outcome = cli(*CHECK[:5], "--results", "bf16", *options, cwd=folder)
    assert outcome.exit_status in (0, 1)
    assert "digits, VAE, L = 2, seed 0: started" in outcome.stdout


@pytest.mark.parametrize("by", ["file", "--set"])
def test_a_baseline_of_other_settings_exits_with_2_before_training(cli, baseline, tiny_text, by):
    folder, _ = baseline
    (folder / "more.yaml").write_text(tiny_text.replace("epochs: 1", "epochs: 2"))
    grid = ["more.yaml"] if by == "file" else ["tiny.yaml", "--set", "training.epochs=2"]
    outcome = cli("check", "--grid", *grid, "--baseline", "b.json", cwd=folder)
    assert outcome.exit_status == 2
    assert "digits_vae_L2: training.epochs was 1, is 2" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (folder / "results").exists()
