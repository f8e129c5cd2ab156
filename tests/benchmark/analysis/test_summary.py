import pytest

from hgmvae_bench.analysis.claim_tests import grid_claims
from hgmvae_bench.analysis.claims import DISENTANGLEMENT_CLAIMS
from hgmvae_bench.analysis.comparison import compare_with_paper
from hgmvae_bench.analysis.summary import paper_summary, verdict_counts
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.grid import load_grid


@pytest.fixture(scope="module")
def grid():
    return load_grid("paper").select(datasets=["mnist"], latent_dims=[8])


@pytest.fixture(scope="module")
def tables(grid, published_runs):
    """The MNIST cells at L = 8, with ten seeds of GMVAE, four of HGMVAE-U and one of HGMVAE-G."""
    seeds = {"gmvae": 10, "hgmvae-u": 4, "hgmvae-g": 1}
    runs = [
        run
        for run in published_runs(grid, noise=0.001, seeds=10)
        if run.record.seed < seeds.get(run.record.settings["model"]["name"], 0)
    ]
    return [build_table(grid, spec, runs) for spec in grid.spec.tables]


def rows_of(markdown):
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    return {first: rest for first, *rest in cells}


def test_values_are_counted_by_verdict_and_seeds(grid, tables):
    compared = compare_with_paper(grid, tables)
    rows = rows_of(verdict_counts(compared))
    assert rows["Verdict"] == ["≥ 1 seed", "≥ 4 seeds", "≥ 10 seeds"]
    # GMVAE and the HGMVAEs have SC, CH and DB in Tables 1 and 4, and an accuracy in Table 2.
    assert rows["reproduced"] == ["7", "7", "7"]
    assert rows["not distinguishable"] == ["7", "7", "0"]
    assert rows["undecided"] == ["7", "0", "0"]
    assert rows["all"] == ["21", "14", "7"]


def test_every_claim_has_a_row_with_its_verdicts_and_failures(grid, tables):
    summary = paper_summary(grid, tables)
    rows = rows_of(summary)
    statement = "From 16 dimensions up HGMVAE-U clusters better than HGMVAE-G (all of 12)"
    assert rows[statement][1:] == ["holds (holds 12)", "not measured", "not measured 12"]
    for each in grid_claims(grid, tables):
        assert f"{each.statement} ({each.quantifier} of {len(each.hypotheses)})" in rows
    assert "A claim is a list of hypotheses about cells." in summary


def test_the_summary_counts_the_measured_values(grid, tables):
    summary = paper_summary(grid, tables)
    compared = compare_with_paper(grid, tables)
    distinct = {(each.metric, each.model) for each in compared}
    # SC, CH and DB of three models are in Table 1 and in Table 4.
    assert f"12 of {len(distinct)} published values have a measured seed" in summary
    assert f"(21 of {len(compared)} as printed" in summary
    assert rows_of(summary)["all"] == ["12", "8", "4"]


def test_the_summary_of_a_grid_beyond_the_paper_has_its_claims_alone():
    own = load_grid("disentanglement")
    summary = paper_summary(own, [build_table(own, spec, []) for spec in own.spec.tables])
    rows = rows_of(summary)
    claim = DISENTANGLEMENT_CLAIMS[0]
    assert rows[f"{claim.statement} (most of 4)"][1:] == ["not measured", "not measured 4"]
    assert "values have a measured seed" not in summary


def test_the_summary_of_a_grid_without_published_values_and_claims_is_empty(tiny_grid):
    tables = [build_table(tiny_grid, spec, []) for spec in tiny_grid.spec.tables]
    assert paper_summary(tiny_grid, tables) == ""
