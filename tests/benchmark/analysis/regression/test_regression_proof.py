"""The regression check on models really trained: what is broken is caught, new seeds are not."""

from pathlib import Path

import pytest
import torch

from hgmvae_bench.analysis.regression.baseline import (
    load_baseline,
    make_baseline,
    require_same_setup,
)
from hgmvae_bench.analysis.regression.check import compare_with_baseline, format_check
from hgmvae_bench.execution import run as execution
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.storage.store import Store

COMMITTED = Path(__file__).parents[4] / "results" / "baselines" / "smoke.json"

PROOF = """
name: proof
title: Seconds a run, and far enough trained that losses and codes mean something
seeds: 2
network: { width: 4 }
training: { epochs: 4, batch_size: 32, train_images: 512, learning_rate: 0.01 }
models:
  hgmvae-u:
    settings: { warmup_epochs: 2, fisher_delay: 0, fisher_weight: 100.0 }
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, hgmvae-u]
    latent_dims: [4]
    metrics: [sc, ch, db, accuracy, svm-accuracy]
    rows: [metric]
    columns: [model]
"""
OLD_SEEDS = range(8)


def runs_of(grid, data, seeds):
    return [Run(cell, seed, data.digest) for cell in grid.cells for seed in seeds]


@pytest.fixture(scope="module")
def proof():
    return parse_grid(PROOF, "proof.yaml")


@pytest.fixture(scope="module")
def proven(tmp_path_factory, proof, digits):
    """A results folder of the baseline's seeds, and the baseline."""
    store = Store(tmp_path_factory.mktemp("proof"))
    runs = runs_of(proof, digits, OLD_SEEDS)
    train(runs, proof, digits, store)
    return store, make_baseline(proof, runs, store.runs())


def train(runs, grid, data, store):
    torch.set_num_threads(1)
    for run in runs:
        metrics = grid.cells[run.cell]
        execution.execute_run(run, data, metrics, RunContext(store))


def checked(baseline, grid, data, store, first):
    """What the command does: two seeds, and two more if there is a suspicion."""
    runs = runs_of(grid, data, range(first, first + 2))
    train(runs, grid, data, store)
    check = compare_with_baseline(baseline, grid, runs, store.runs())
    if not check.shifts:
        return check
    more = runs_of(grid, data, range(first + 2, first + 4))
    train([run for run in more if run.key not in store.runs()], grid, data, store)
    return check.confirmed_by(compare_with_baseline(baseline, grid, runs + more, store.runs()))


def break_model(monkeypatch, change):
    """Have every model built from now on changed."""
    build = execution.build_model

    def broken(*arguments):
        change(model := build(*arguments))
        return model

    monkeypatch.setattr(execution, "build_model", broken)


def flip_fisher(model):
    model.model_config.fisher_weight *= -1


def drop_kl(model):
    terms = model.loss_function

    def without(*arguments):
        _, recon_loss, reg_loss = terms(*arguments)
        return recon_loss, recon_loss, reg_loss

    model.loss_function = without


def sample_codes(model):
    def sampled(data):
        encoded = model.encoder(data)
        deviation = (0.5 * encoded.log_covariance).exp()
        return encoded.embedding + deviation * torch.randn_like(deviation)

    model.latent_code = sampled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "change", "witness"),
    [("hgmvae-u", flip_fisher, "final fisher"), ("vae", drop_kl, "final reg_loss")],
)
def test_a_broken_loss_is_caught(
    proof, proven, digits, tmp_path, monkeypatch, model, change, witness
):
    _, baseline = proven
    grid, store = proof.select(models=[model]), Store(tmp_path)
    break_model(monkeypatch, change)
    check = checked(baseline, grid, digits, store, 0)
    assert not check.passed
    assert check.missing == []
    assert witness in {shift.measure for shift in check.shifts}


@pytest.mark.slow
def test_codes_sampled_instead_of_means_are_caught(digits, tmp_path, monkeypatch):
    """Against the committed baseline: the shift is too small for models trained in seconds."""
    baseline, store = load_baseline(COMMITTED), Store(tmp_path)
    grid = load_grid("smoke").select(models=["beta-vae"], latent_dims=[8])
    runs = runs_of(grid, digits, range(2))
    require_same_setup(baseline, grid, runs)
    train(runs, grid, digits, store)
    assert compare_with_baseline(baseline, grid, runs, store.runs()).passed
    break_model(monkeypatch, sample_codes)
    for run in runs:
        stored, metrics = store.runs()[run.key], grid.cells[run.cell]
        execution.rescore(stored, run, digits, metrics, RunContext(store))
    shifts = {
        shift.measure for shift in compare_with_baseline(baseline, grid, runs, store.runs()).shifts
    }
    assert shifts & {"sc", "nmi", "svm-accuracy"}
    assert not any(measure.startswith("final") for measure in shifts)


@pytest.mark.slow
def test_ten_repeats_with_new_seeds_raise_no_alarm(proof, proven, digits):
    store, baseline = proven
    grid = proof.select(models=["vae"])
    for repeat in range(10):
        first = len(OLD_SEEDS) + 2 * repeat
        check = checked(baseline, grid, digits, store, first)
        assert len(check.comparisons) == 5 + 3
        assert check.passed, format_check(check)
