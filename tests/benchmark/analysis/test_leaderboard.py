"""Leaderboards from recorded runs."""

import pytest

from hgmvae_bench.analysis.leaderboard import leaderboards
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun


@pytest.fixture
def runs_of(tiny_grid):
    """Complete runs of one model with the given accuracies."""

    def runs(model, accuracies, hardware="a processor", minutes=3.0):
        cell = tiny_grid.cell("digits", model, 2)
        return [
            StoredRun(
                Record.of(
                    run := Run(cell, seed, "d"),
                    status="complete",
                    seconds={"training": 60 * minutes},
                    provenance={"cpu": hardware},
                ),
                run.key,
                {"accuracy": MetricValue(value=value, fingerprint={"n": 1})},
            )
            for seed, value in enumerate(accuracies)
        ]

    return runs


def test_models_are_ordered_by_the_first_metric_with_intervals_seeds_and_cost(tiny_grid, runs_of):
    runs = runs_of("vae", [0.5, 0.5, 0.53]) + runs_of("wae-imq", [0.9, 0.91, 0.92], minutes=1.5)
    [board] = leaderboards(tiny_grid, runs)
    assert (board.dataset, board.latent_dim) == ("digits", 2)
    assert board.frame["model"].tolist() == ["WAE-IMQ", "VAE"]
    # 0.91 ± t(0.975, 2 df) · 0.01 / √3
    assert board.frame.iloc[0, 1] == "**0.910 [0.885, 0.935]**"
    assert board.frame["seeds"].tolist() == ["3", "3"]
    assert board.frame["training"].tolist() == ["1.5 min (a processor)", "3.0 min (a processor)"]


def test_models_that_the_seeds_cannot_tell_from_the_best_are_marked(tiny_grid, runs_of):
    runs = runs_of("vae", [0.5, 0.6, 0.7]) + runs_of("wae-imq", [0.55, 0.65, 0.7])
    [board] = leaderboards(tiny_grid, runs)
    assert board.frame.iloc[1, 1].endswith("⁼")


def test_a_single_model_and_unfinished_runs_make_no_leaderboard(tiny_grid, runs_of):
    failed = Record.of(Run(tiny_grid.cell("digits", "vae", 2), 0, "d"), status="failed", error="x")
    runs = [*runs_of("wae-imq", [0.5, 0.6]), StoredRun(failed, "key", {})]
    assert leaderboards(tiny_grid, runs) == []


def test_the_cost_is_the_median_on_the_hardware_of_most_runs(tiny_grid, runs_of):
    vae = [run for minutes in (1, 2, 9) for run in runs_of("vae", [0.5], minutes=minutes)]
    vae += runs_of("vae", [0.5], hardware="some other processor", minutes=50)
    [board] = leaderboards(tiny_grid, vae + runs_of("wae-imq", [0.4]))
    assert board.frame["training"][0] == "2.0 min (a processor)"


def test_the_lowest_mean_comes_first_if_lower_is_better(tiny_grid, runs_of):
    runs = runs_of("wae-imq", [0.9, 0.91]) + runs_of("vae", [0.5, 0.51])
    of_db = [StoredRun(r.record, r.sha256, {"db": r.metrics["accuracy"]}) for r in runs]
    [board] = leaderboards(tiny_grid, of_db)
    assert board.frame["model"].tolist() == ["VAE", "WAE-IMQ"]


def test_a_model_without_a_value_comes_last(tiny_grid, runs_of):
    without = [StoredRun(r.record, r.sha256, {}) for r in runs_of("vae", [0.5, 0.6])]
    [board] = leaderboards(tiny_grid, [*without, *runs_of("wae-imq", [0.1, 0.2])])
    assert board.frame["model"].tolist() == ["WAE-IMQ", "VAE"]
