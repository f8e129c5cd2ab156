"""Mean ranks and Nemenyi's critical difference."""

import dataclasses

import pytest
from scipy.stats import friedmanchisquare

from hgmvae_bench.analysis.figures import FIGURES, ranks
from hgmvae_bench.analysis.figures.ranks import critical_difference, rank_models
from hgmvae_bench.plugins.registry import METRICS


def test_models_are_ranked_by_their_means(made_up):
    source = made_up()
    # SC grows from vae to swae in every block; it is better higher, DB lower.
    by_metric = {metric: rank_models(source, metric) for metric in ("sc", "db")}
    assert by_metric["sc"].by_block.tolist() == [[3, 2, 1]] * 3
    assert by_metric["db"].by_block.tolist() == [[1, 2, 3]] * 3
    p_value = friedmanchisquare([3, 3, 3], [2, 2, 2], [1, 1, 1]).pvalue
    assert by_metric["sc"].p_value == pytest.approx(p_value)
    panel = FIGURES["ranks"].draw(source).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()][:2] == ["SWAE", "β-VAE"]
    assert "N = 3" in panel.get_xlabel()


def test_the_axis_shows_the_bars_completely(made_up):
    # Two blocks: the bars reach 1.7 ranks either way, of three.
    source = made_up([("swae", 4, seed) for seed in range(3)])
    half = critical_difference(3, 2) / 2
    for panel in FIGURES["ranks"].draw(source).axes:
        low, high = panel.get_xlim()
        assert low < 1 - half < 3 + half < high
        assert panel.get_xticks().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    # q of Demšar 2006, Table 5(a), at 5 %; the difference by its formula.
    ("k", "q"),
    [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)],
)
def test_the_critical_difference_matches_demsar(k, q):
    expected = q * (k * (k + 1) / (6 * 14)) ** 0.5
    assert critical_difference(k, 14) == pytest.approx(expected, rel=1e-3)


def test_ranks_leave_out_blocks_with_missing_values(made_up):
    source = made_up([("swae", 4, seed) for seed in range(3)])
    assert rank_models(source, "sc").by_block.shape == (2, 3)


def test_a_neutral_metric_ranks_no_models(made_up, monkeypatch):
    source = made_up()
    assert rank_models(source, "sc") is not None
    neutral = dataclasses.replace(METRICS["sc"], direction="neutral")
    monkeypatch.setattr(ranks, "METRICS", {"sc": neutral})
    assert rank_models(source, "sc") is None


def test_the_same_results_give_the_same_files(made_up, assert_deterministic_files):
    source = made_up()
    assert_deterministic_files(lambda: FIGURES["ranks"].draw(source))
