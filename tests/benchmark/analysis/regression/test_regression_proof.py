"""The regression check on trained models: it finds faults and accepts new seeds."""

import itertools
from pathlib import Path

import pytest
import torch

from hgmvae_bench.analysis.regression.baseline import (
    load_baseline,
    make_baseline,
    require_same_setup,
)
from hgmvae_bench.analysis.regression.check import compare_with_baseline, format_check
from hgmvae_bench.execution.run import execute_run, rescore
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.storage.store import Store

COMMITTED = Path(__file__).parents[4] / "results" / "baselines" / "smoke.json"

PROOF = """
name: proof
title: Runs of seconds, trained far enough for meaningful losses and codes
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
    """A store with the runs of a baseline, and the baseline."""
    store = Store(tmp_path_factory.mktemp("proof"))
    runs = runs_of(proof, digits, OLD_SEEDS)
    train(runs, proof, digits, store)
    return store, make_baseline(proof, runs, store.runs())


def train(runs, grid, data, store):
    torch.set_num_threads(1)
    for run in runs:
        metrics = grid.cells[run.cell]
        execute_run(run, data, metrics, RunContext(store))


def checked(baseline, grid, data, store, seeds):
    """Check two seeds as the command does, and confirm a suspicion with all four."""
    first = runs_of(grid, data, seeds[:2])
    train([run for run in first if run.key not in store.runs()], grid, data, store)
    check = compare_with_baseline(baseline, grid, first, store.runs())
    if not check.shifts:
        return check
    runs = runs_of(grid, data, seeds)
    train([run for run in runs if run.key not in store.runs()], grid, data, store)
    return check.confirmed_by(compare_with_baseline(baseline, grid, runs, store.runs()))


def break_model(monkeypatch, name, change):
    """Change every model that is built from now on by the plug-in of this name."""
    plugin = type(MODELS[name])
    build = plugin.build

    def broken(self, **arguments):
        change(model := build(self, **arguments))
        return model

    monkeypatch.setattr(plugin, "build", broken)


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
@pytest.mark.extended
@pytest.mark.parametrize(
    ("model", "change", "witness"),
    [("hgmvae-u", flip_fisher, "final fisher"), ("vae", drop_kl, "final reg_loss")],
)
def test_a_broken_loss_is_found(
    proof, proven, digits, tmp_path, monkeypatch, model, change, witness
):
    _, baseline = proven
    grid, store = proof.select(models=[model]), Store(tmp_path)
    break_model(monkeypatch, model, change)
    check = checked(baseline, grid, digits, store, range(4))
    assert not check.passed
    assert check.missing == []
    assert witness in {shift.measure for shift in check.shifts}


@pytest.mark.slow
@pytest.mark.extended
def test_codes_sampled_instead_of_means_are_found(digits, tmp_path, monkeypatch):
    """This uses the committed baseline, since the shift is small for models trained in seconds."""
    baseline, store = load_baseline(COMMITTED), Store(tmp_path)
    grid = load_grid("smoke").select(models=["beta-vae"], latent_dims=[8])
    runs = runs_of(grid, digits, range(2))
    require_same_setup(baseline, grid, runs)
    train(runs, grid, digits, store)
    assert compare_with_baseline(baseline, grid, runs, store.runs()).passed
    break_model(monkeypatch, "beta-vae", sample_codes)
    for run in runs:
        stored, metrics = store.runs()[run.key], grid.cells[run.cell]
        rescore(stored, run, digits, metrics, RunContext(store), number=1)
    shifts = {
        shift.measure for shift in compare_with_baseline(baseline, grid, runs, store.runs()).shifts
    }
    assert shifts & {"sc", "nmi", "svm-accuracy"}
    assert not any(measure.startswith("final") for measure in shifts)


@pytest.mark.slow
@pytest.mark.extended
def test_pairs_of_new_seeds_raise_no_alarm(proof, proven, digits):
    """All 28 pairs of eight new seeds; a suspicion is confirmed with the next two seeds."""
    store, baseline = proven
    grid = proof.select(models=["vae"])
    new = range(len(OLD_SEEDS), len(OLD_SEEDS) + 8)
    for pair in itertools.combinations(new, 2):
        others = [seed for seed in new if seed not in pair]
        check = checked(baseline, grid, digits, store, [*pair, *others[:2]])
        assert len(check.comparisons) == 5 + 3
        assert check.passed, format_check(check)
