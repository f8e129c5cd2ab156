"""Curves over latent dims and over epochs."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from hgmvae_bench.analysis.figures import FIGURES, FigureSource
from hgmvae_bench.grid import load_grid
from hgmvae_bench.storage.store import Store

from .conftest import value_of

SEEDS = range(3)


def test_fig_3_draws_means_over_seeds(made_up, lines):
    figure = FIGURES["3"].draw(made_up(diverged=[("swae", 4, seed) for seed in SEEDS]))
    for metric, panel in zip(("sc", "ch", "db"), figure.axes, strict=True):
        drawn = lines(panel)
        assert len(drawn) == 3
        line = drawn["β-VAE"]
        assert line.get_xdata().tolist() == [2, 4, 8]
        means = [
            np.mean([value_of(metric, "beta-vae", L, seed) for seed in SEEDS]) for L in (2, 4, 8)
        ]
        np.testing.assert_allclose(line.get_ydata(), means)
        assert np.isnan(drawn["SWAE"].get_ydata()).tolist() == [False, True, False]
        assert panel.get_xlabel() == "latent dimension L"
        assert panel.get_ylabel().endswith("(lower is better)" if metric == "db" else "is better)")
    assert "3 seeds" in figure.get_suptitle()


def test_fig_3_has_no_panel_for_a_metric_without_values(made_up):
    source = made_up()
    for run in source.runs.values():
        del run.metrics["ch"]
    figure = FIGURES["3"].draw(source)
    assert [panel.get_title() for panel in figure.axes] == ["SC ↑", "DB ↓"]


def test_fig_3_has_bands_of_one_standard_deviation(made_up):
    panel = FIGURES["3"].draw(made_up()).axes[0]
    values = [value_of("sc", "vae", 8, seed) for seed in SEEDS]
    corners = panel.collections[0].get_paths()[0].vertices
    at_8 = corners[corners[:, 0] == 8][:, 1]
    spread = np.std(values, ddof=1)
    assert at_8.min() == pytest.approx(np.mean(values) - spread)
    assert at_8.max() == pytest.approx(np.mean(values) + spread)


def test_an_isolated_latent_dim_has_a_bar_in_place_of_the_band(made_up):
    panel = FIGURES["3"].draw(made_up([("vae", 4, seed) for seed in SEEDS])).axes[0]
    bars = [part for part in panel.collections if isinstance(part, LineCollection)]
    expected = []
    for latent_dim in (2, 8):  # the other models have a value at 4 as well
        values = [value_of("sc", "vae", latent_dim, seed) for seed in SEEDS]
        mean, spread = np.mean(values), np.std(values, ddof=1)
        expected.append([(latent_dim, mean - spread), (latent_dim, mean + spread)])
    np.testing.assert_allclose([bar.get_segments()[0] for bar in bars], expected)


def test_fig_3_shows_published_values_as_hollow_markers(tmp_path, published_runs, lines):
    grid = load_grid("paper").select(["mnist"], ["gmvae", "hgmvae-g", "hgmvae-u"], [4, 8])
    runs = {r.sha256: r for r in published_runs(grid, 0.1) if "hgmvae-u" not in r.record.key}
    figure = FIGURES["3"].draw(FigureSource(grid, Store(tmp_path), runs, tmp_path))
    # Copied by hand from Table 1: GMVAE, HGMVAE-G.
    published = [
        ([0.382, 0.404], [0.467, 0.442]),
        ([2958.787, 3428.849], [3782.171, 3930.585]),
        ([1.026, 0.956], [0.767, 0.853]),
    ]
    for panel, values in zip(figure.axes, published, strict=True):
        drawn = lines(panel)
        for model, expected in zip(("GMVAE", "HGMVAE-G"), values, strict=True):
            hollow, measured = drawn[f"_{model}"], drawn[model]
            assert hollow.get_xdata().tolist() == [4, 8]
            assert hollow.get_ydata().tolist() == expected
            assert measured.get_ydata().tolist() != expected
            assert hollow.get_markerfacecolor() == hollow.get_linestyle().lower() == "none"
            assert hollow.get_color() == measured.get_color()
            assert hollow.get_marker() == measured.get_marker()
        # HGMVAE-U has no run, hence no line that would explain its markers.
        assert "_HGMVAE-U" not in drawn
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["GMVAE", "HGMVAE-G", "hollow: as published"]


def test_fig_3_has_no_hollow_markers_without_published_values(made_up, lines):
    figure = FIGURES["3"].draw(made_up())
    assert [len(lines(panel)) for panel in figure.axes] == [3, 3, 3]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[1:] == ["β-VAE", "SWAE"]


def test_the_title_counts_missing_seeds(made_up):
    figure = FIGURES["3"].draw(made_up([("vae", 2, 0)]))
    assert "2 to 3 of 3 seeds" in figure.get_suptitle()


def test_filters_do_not_change_the_style_of_a_series(made_up, lines):
    source = made_up()
    unfiltered, filtered = (
        lines(FIGURES["3"].draw(each).axes[0])["SWAE"]
        for each in (source, source.select(models=["swae"]))
    )
    assert unfiltered.get_color() == filtered.get_color()
    assert unfiltered.get_marker() == filtered.get_marker()
    assert unfiltered.get_linestyle() == filtered.get_linestyle()


def test_series_differ_without_colour(made_up):
    styles = {
        (line.get_linestyle(), line.get_marker())
        for line in FIGURES["3"].draw(made_up()).axes[0].get_lines()
    }
    assert len(styles) == 3


def test_training_curves_show_histories_and_divergence(made_up, lines):
    figure = FIGURES["training"].draw(made_up([("swae", 4, 0)]).select(latent_dims=[4]))
    loss, fisher = figure.axes
    assert (loss.get_title(), fisher.get_title()) == ("Loss", "Fisher")
    assert loss.get_xlabel() == "epoch"
    np.testing.assert_allclose(lines(loss)["β-VAE"].get_ydata(), [2.0, 2.0, 1.0])
    np.testing.assert_allclose(lines(loss)["SWAE"].get_ydata(), [1.5, 2.0, 1.0])
    assert lines(loss)["SWAE (diverged)"].get_ydata().tolist() == [3.0, 2.0]
    assert "3 seeds" in figure.get_suptitle()
