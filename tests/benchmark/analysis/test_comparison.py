from collections import Counter

import pytest

from hgmvae_bench.analysis.comparison import (
    MIN_SEEDS,
    ComparisonError,
    compare_with_paper,
    comparison_frame,
    format_comparison,
    value_verdict,
)
from hgmvae_bench.analysis.render import to_csv, to_text
from hgmvae_bench.analysis.stats import prediction_interval
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.grid import load_grid, parse_grid
from hgmvae_bench.storage.schema import MetricValue


@pytest.fixture(scope="module")
def grid():
    return load_grid("paper").select(datasets=["mnist"], seeds=5)


@pytest.fixture(scope="module")
def runs(grid, published_runs):
    return published_runs(grid, noise=0.02)


def compared(grid, runs, *names):
    return compare_with_paper(grid, [build_table(grid, grid.table(name), runs) for name in names])


def by_cell(rows):
    return {(each.metric, each.model, each.latent_dim): each for each in rows}


@pytest.mark.parametrize(
    ("published", "mean", "bounds", "direction", "n", "expected"),
    [
        (1.0, 1.15, (0.9, 1.4), "higher", 4, "reproduced"),
        (0.9, 1.1, (0.9, 1.3), "lower", 10, "reproduced"),
        (-1.0, -1.1, (-1.3, -0.9), "higher", 10, "reproduced"),
        (1.0, 1.15, (0.9, 1.4), "higher", 3, "undecided"),
        (1.0, 1.15, (0.88, 1.42), "higher", 4, "undecided"),
        (0.8, 1.5, (0.9, 2.1), "higher", 10, "better"),
        (0.8, 1.5, (0.9, 2.1), "lower", 10, "worse"),
        (2.2, 1.5, (0.9, 2.1), "higher", 2, "worse"),
        (2.2, 1.5, (0.9, 2.1), "lower", 2, "better"),
        (2.2, 1.5, None, "lower", 1, "undecided"),
        (2.2, None, None, "lower", 0, "missing"),
    ],
)
def test_verdict(published, mean, bounds, direction, n, expected):
    assert value_verdict(published, mean, bounds, direction, n) == expected


def test_it_takes_as_many_seeds_as_bring_the_interval_within_two_deviations():
    """By the interval of two seeds a CH of 8,745 ± 674 would have reproduced one of 3,931."""

    def reach(n):
        low, high = prediction_interval([-1.0, 1.0] * (n // 2) + [0.0] * (n % 2), 10)
        deviation = (2 * (n // 2) / (n - 1)) ** 0.5
        return (high - low) / 2 / deviation

    assert reach(MIN_SEEDS) < 2 < reach(MIN_SEEDS - 1)
    assert [round(reach(n), 1) for n in (2, 3, 4)] == [9.8, 2.8, 1.9]


def test_values_drawn_around_the_published_ones_are_reproduced_as_often_as_promised(grid, runs):
    """63 cells at 95 %, were ten more runs drawn; against the true mean, more often."""
    rows = compared(grid, runs, "1")
    counts = Counter(each.verdict for each in rows)
    assert len(rows) == 63
    assert counts["reproduced"] >= 57
    assert set(counts) <= {"reproduced", "better", "worse"}


def test_the_interval_is_the_prediction_of_ten_runs_and_the_rounding(grid, runs):
    row = by_cell(compared(grid, runs, "1"))["sc", "gmvae", 8]
    cell = grid.cell("mnist", "gmvae", 8).identity
    values = [run.metrics["sc"].value for run in runs if run.record.cell == cell]
    low, high = prediction_interval(values, 10)
    assert (row.low, row.high) == pytest.approx((low - 0.0005, high + 0.0005))
    assert row.published == 0.404
    assert row.difference == pytest.approx(sum(values) / 5 - 0.404)


def test_a_shift_beyond_noise_is_better_or_worse_by_direction(grid, runs):
    shifted = [
        type(run)(
            run.record,
            run.sha256,
            {
                name: MetricValue(value=1.3 * value.value, fingerprint=value.fingerprint)
                for name, value in run.metrics.items()
            },
        )
        for run in runs
    ]
    rows = compared(grid, shifted, "1")
    assert {(each.metric, each.verdict) for each in rows} == {
        ("sc", "better"),
        ("ch", "better"),
        ("db", "worse"),
    }


def test_what_was_not_measured_is_missing_and_one_seed_decides_nothing(grid, runs):
    gmvae = grid.cell("mnist", "gmvae", 8).identity
    one = [run for run in runs if run.record.cell == gmvae][:1]
    rows = by_cell(compared(grid, one, "1"))
    assert rows["sc", "gmvae", 8].verdict == "undecided"
    assert rows["sc", "gmvae", 8].run_note == "n = 1 of 5: 4 × not run"
    missing = rows["sc", "gmvae", 4]
    assert (missing.verdict, missing.mean, missing.n) == ("missing", None, 0)


def test_a_cell_is_compared_with_the_table_of_its_own_number(grid):
    whole = load_grid("paper").select(datasets=["3d-chairs"])
    rows = compared(whole, [], "3", "5")
    values = {
        each.table: (each.published, each.paper_note)
        for each in rows
        if (each.metric, each.model) == ("fid", "hgmvae-g")
    }
    assert values["3"][0] == 92.201
    assert values["3"][1].endswith("Table 5 gives 40.986")
    assert values["5"] == (40.986, "Table 3 gives 92.201")


def test_settings_other_than_the_paper_grids_are_said(tiny_text):
    text = tiny_text.replace("[digits]", "[mnist]").replace("[vae, wae-imq]", "[gmvae, vae]")
    text = text.replace("latent_dims: [2]", "latent_dims: [3, 8]")
    text = text.replace("columns: [model]", "columns: [model, latent_dim]")
    grid = parse_grid(text, "g.yaml")
    rows = compared(grid, [], "1")
    # VAE, three dimensions and accuracy the paper does not have.
    assert {(each.metric, each.model, each.latent_dim) for each in rows} == {("sc", "gmvae", 8)}
    note = rows[0].settings_note
    assert "network.width 2 (not 32)" in note
    assert "training.epochs 1 (not 10)" in note
    assert "training.train_images 128 (not None)" in note
    assert "latent_dim" not in note


def test_the_paper_grid_has_no_settings_of_its_own(grid, runs):
    assert {each.settings_note for each in compared(grid, runs, "1")} == {""}


def test_the_sheet_shows_each_value_and_the_tally(grid, runs):
    table = build_table(grid, grid.table("3"), runs)
    rows = compare_with_paper(grid, [table])
    sheet = format_comparison(table, rows)
    lines = to_text(sheet).splitlines()
    counts = Counter(each.verdict for each in rows)
    assert f"{counts['reproduced']} reproduced" in lines[0]
    fid = next(line for line in lines if line.startswith("MNIST")).split()
    assert fid[:5] == ["MNIST", "FID↓", "VAE", "128", "50.465"]
    assert to_csv(sheet).count("\n") == 32 + 1
    assert len(comparison_frame(rows)) == 32


def test_a_table_that_the_paper_does_not_have_says_so(tiny_grid):
    table = build_table(tiny_grid, tiny_grid.table("1"), [])
    with pytest.raises(ComparisonError, match="no value of any cell of table 1"):
        format_comparison(table, [])
