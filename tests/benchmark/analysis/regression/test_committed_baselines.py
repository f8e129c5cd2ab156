"""The committed baselines: complete, of the current settings, and their power."""

from pathlib import Path

import numpy as np
import pytest

from hgmvae_bench.analysis.regression.baseline import load_baseline, require_same_setup
from hgmvae_bench.grid import Run, load_grid

ROOT = Path(__file__).parents[4]
COMMITTED = {path.stem: path for path in sorted((ROOT / "results" / "baselines").glob("*.json"))}
SEEDS = {"smoke": 10, "small": 3, "small-bf16": 3}


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_baseline_is_complete_and_has_the_current_settings(name):
    baseline = load_baseline(COMMITTED[name]).in_precision("float32")
    assert all(cell.seeds == list(range(SEEDS[name])) for cell in baseline.cells)
    grid = load_grid(baseline.grid)
    digests = {cell.identity: cell.data_digest for cell in baseline.cells}
    assert len(digests) == len(grid.cells)
    runs = [Run(cell, 0, digests.get(cell.identity, "")) for cell in grid.cells]
    require_same_setup(baseline, grid, runs)


def test_bf16_shifts_no_metric_of_the_small_grid():
    """Differences between its formats, in standard deviations over seeds, are those of noise.

    Means of three values each, divided by their pooled deviation: Student's t of four degrees of
    freedom, with a deviation of √2, times √(1/3 + 1/3).
    """
    quotients = []
    for one, other in zip(
        *(load_baseline(COMMITTED[name]).cells for name in ("small", "small-bf16")), strict=True
    ):
        assert one.name == other.name
        for metric in one.fingerprints:
            old, new = np.array(one.measures[metric]), np.array(other.measures[metric])
            deviation = np.sqrt((old.var(ddof=1) + new.var(ddof=1)) / 2)
            quotients.append((new.mean() - old.mean()) / deviation)
    mean, deviation = np.mean(quotients), np.std(quotients, ddof=1)
    of_noise = 2 / np.sqrt(3)
    assert len(quotients) == 144
    assert abs(mean) < 2 * of_noise / np.sqrt(len(quotients))
    assert deviation < of_noise
    page = (ROOT / "docs/results/regression.md").read_text(encoding="utf-8")
    assert f"{mean:.2f} ± {deviation:.2f}" in page
