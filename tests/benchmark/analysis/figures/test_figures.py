import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from PIL import Image
from scipy.stats import friedmanchisquare

import hgmvae_bench as hb
from hgmvae_bench.analysis.figures import FIGURES, FigureError, FigureSource
from hgmvae_bench.analysis.figures.files import draw_all, write_figures
from hgmvae_bench.analysis.figures.ranks import critical_difference, rank_models
from hgmvae_bench.analysis.figures.style import STYLE, save, to_png, to_svg
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.artifacts import ArtifactError
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError

MADE_UP = """
name: made-up
title: Records written by hand
seeds: 3
models:
  vae: { title: "a $\\\\frac{1}$ <b>name</b>" }
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [8, 2, 4]
    metrics: [sc, ch, db]
    rows: [metric, model]
    columns: [latent_dim]
"""


def value_of(metric, model, latent_dim, seed):
    place = ["vae", "beta-vae", "swae"].index(model)
    return {"sc": 0.1, "ch": 100.0, "db": 1.0}[metric] * (1 + place + latent_dim / 10 + seed**2)


def made_up(tmp_path, lacking=()):
    """Results with records but no artifacts; ``lacking`` are (model, L, seed) that diverged."""
    grid = parse_grid(MADE_UP, "made-up.yaml")
    runs = {}
    for model in ("vae", "beta-vae", "swae"):
        for latent_dim in (2, 4, 8):
            for seed in range(3):
                diverged = (model, latent_dim, seed) in lacking
                metrics = {
                    m: MetricValue(value=value_of(m, model, latent_dim, seed))
                    for m in ("sc", "ch", "db")
                }
                history = {"loss": [3.0 - seed, 2.0, 1.0], "fisher": [0.5 * seed, 1.0, 1.5]}
                record = Record.of(
                    Run(grid.cell("digits", model, latent_dim), seed, "d"),
                    status="diverged" if diverged else "complete",
                    metrics={} if diverged else metrics,
                    history={name: h[:2] if diverged else h for name, h in history.items()},
                )
                runs[record.key] = StoredRun(record, record.key, dict(record.metrics))
    return FigureSource(grid, Store(tmp_path), runs, tmp_path)


def lines(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def test_fig_3_draws_the_means_of_the_records(tmp_path):
    figure = FIGURES["3"].draw(made_up(tmp_path, lacking=[("swae", 4, s) for s in range(3)]))
    for metric, panel in zip(("sc", "ch", "db"), figure.axes, strict=True):
        drawn = lines(panel)
        assert len(drawn) == 3
        line = drawn["β-VAE"]
        assert line.get_xdata().tolist() == [2, 4, 8]
        expected = [
            np.mean([value_of(metric, "beta-vae", L, seed) for seed in range(3)]) for L in (2, 4, 8)
        ]
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert np.isnan(drawn["SWAE"].get_ydata()).tolist() == [False, True, False]
        assert panel.get_xlabel() == "latent dimension L"
        assert panel.get_ylabel().endswith("(lower is better)" if metric == "db" else "is better)")
    assert "3 seeds" in figure.get_suptitle()


def test_fig_3_has_no_panel_of_a_metric_that_no_run_has(tmp_path):
    source = made_up(tmp_path)
    for run in source.runs.values():
        del run.metrics["ch"]
    figure = FIGURES["3"].draw(source)
    assert [panel.get_title() for panel in figure.axes] == ["SC ↑", "DB ↓"]


def test_fig_3_has_bands_of_one_standard_deviation(tmp_path):
    panel = FIGURES["3"].draw(made_up(tmp_path)).axes[0]
    values = [value_of("sc", "vae", 8, seed) for seed in range(3)]
    corners = panel.collections[0].get_paths()[0].vertices
    at_8 = corners[corners[:, 0] == 8][:, 1]
    spread = np.std(values, ddof=1)
    assert at_8.min() == pytest.approx(np.mean(values) - spread)
    assert at_8.max() == pytest.approx(np.mean(values) + spread)


def test_a_latent_dimension_that_stands_alone_has_a_bar_for_its_band(tmp_path):
    lacking = [("vae", 4, seed) for seed in range(3)]
    panel = FIGURES["3"].draw(made_up(tmp_path, lacking)).axes[0]
    bars = [part for part in panel.collections if isinstance(part, LineCollection)]
    expected = []
    for latent_dim in (2, 8):  # the other models have a value at 4 as well
        values = [value_of("sc", "vae", latent_dim, seed) for seed in range(3)]
        mean, spread = np.mean(values), np.std(values, ddof=1)
        expected.append([(latent_dim, mean - spread), (latent_dim, mean + spread)])
    np.testing.assert_allclose([bar.get_segments()[0] for bar in bars], expected)


def test_fig_3_shows_what_the_paper_printed_as_hollow_markers(tmp_path, published_runs):
    grid = load_grid("paper").select(["mnist"], ["gmvae", "hgmvae-g", "hgmvae-u"], [4, 8])
    runs = {r.sha256: r for r in published_runs(grid, 0.1) if "hgmvae-u" not in r.record.key}
    figure = FIGURES["3"].draw(FigureSource(grid, Store(tmp_path), runs, tmp_path))
    # By hand from Table 1: GMVAE, HGMVAE-G.
    printed = [
        ([0.382, 0.404], [0.467, 0.442]),
        ([2958.787, 3428.849], [3782.171, 3930.585]),
        ([1.026, 0.956], [0.767, 0.853]),
    ]
    for panel, values in zip(figure.axes, printed, strict=True):
        drawn = lines(panel)
        for model, expected in zip(("GMVAE", "HGMVAE-G"), values, strict=True):
            hollow, measured = drawn[f"_{model}"], drawn[model]
            assert hollow.get_xdata().tolist() == [4, 8]
            assert hollow.get_ydata().tolist() == expected
            assert measured.get_ydata().tolist() != expected
            assert hollow.get_markerfacecolor() == hollow.get_linestyle().lower() == "none"
            assert hollow.get_color() == measured.get_color()
            assert hollow.get_marker() == measured.get_marker()
        # A model without runs has no line, so that nothing would say whose markers these are.
        assert "_HGMVAE-U" not in drawn
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["GMVAE", "HGMVAE-G", "hollow: as published"]


def test_fig_3_has_no_hollow_markers_where_nothing_was_printed(tmp_path):
    figure = FIGURES["3"].draw(made_up(tmp_path))
    assert [len(lines(panel)) for panel in figure.axes] == [3, 3, 3]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[1:] == ["β-VAE", "SWAE"]


def test_fewer_seeds_than_planned_are_told_in_the_title(tmp_path):
    figure = FIGURES["3"].draw(made_up(tmp_path, lacking=[("vae", 2, 0)]))
    assert "2 to 3 of 3 seeds" in figure.get_suptitle()


def test_filters_change_no_colour(tmp_path):
    source = made_up(tmp_path)
    every, one = (
        lines(FIGURES["3"].draw(r).axes[0])["SWAE"]
        for r in (source, source.select(models=["swae"]))
    )
    assert every.get_color() == one.get_color()
    assert every.get_marker() == one.get_marker()
    assert every.get_linestyle() == one.get_linestyle()


def test_series_differ_without_colour(tmp_path):
    looks = {
        (line.get_linestyle(), line.get_marker())
        for line in FIGURES["3"].draw(made_up(tmp_path)).axes[0].get_lines()
    }
    assert len(looks) == 3


def test_training_curves_are_the_histories_and_divergence_shows(tmp_path):
    source = made_up(tmp_path, lacking=[("swae", 4, 0)]).select(latent_dims=[4])
    figure = FIGURES["training"].draw(source)
    loss, fisher = figure.axes
    assert (loss.get_title(), fisher.get_title()) == ("Loss", "Fisher")
    assert loss.get_xlabel() == "epoch"
    np.testing.assert_allclose(lines(loss)["β-VAE"].get_ydata(), [2.0, 2.0, 1.0])
    np.testing.assert_allclose(lines(loss)["SWAE"].get_ydata(), [1.5, 2.0, 1.0])
    assert lines(loss)["SWAE (diverged)"].get_ydata().tolist() == [3.0, 2.0]
    assert "3 seeds" in figure.get_suptitle()


@pytest.mark.parametrize("name", ["3", "4", "training"])
def test_where_every_run_diverged_the_advice_is_to_do_them_again(tmp_path, name):
    source = made_up(tmp_path, lacking=[("vae", 4, seed) for seed in range(3)])
    without = {
        k: StoredRun(r.record.model_copy(update={"history": {}}), r.sha256, r.metrics)
        for k, r in source.runs.items()
    }
    source = replace(source, runs=without).select(models=["vae"], latent_dims=[4])
    with pytest.raises(FigureError, match=r"; 3 diverged: `hgmvae-bench run --retry-failed` does"):
        FIGURES[name].draw(source)


def test_a_file_of_an_unknown_format_is_refused(source, tmp_path):
    with pytest.raises(FigureError, match=r"x.bmp: figures are written as .png or .svg"):
        list(write_figures(FIGURES["training"], source, tmp_path / "x.bmp"))
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_those_of_the_means(tmp_path):
    source = made_up(tmp_path)
    # SC grows from vae to swae in every block; it is better higher, DB lower.
    by_metric = {metric: rank_models(source, metric) for metric in ("sc", "db")}
    assert by_metric["sc"].by_block.tolist() == [[3, 2, 1]] * 3
    assert by_metric["db"].by_block.tolist() == [[1, 2, 3]] * 3
    p_value = friedmanchisquare([3, 3, 3], [2, 2, 2], [1, 1, 1]).pvalue
    assert by_metric["sc"].p_value == pytest.approx(p_value)
    panel = FIGURES["ranks"].draw(source).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()][:2] == ["SWAE", "β-VAE"]
    assert "N = 3" in panel.get_xlabel()


def test_the_bars_of_the_ranks_are_seen_whole(tmp_path):
    # Two blocks: 1.7 ranks either way, of three.
    source = made_up(tmp_path, lacking=[("swae", 4, seed) for seed in range(3)])
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
def test_the_critical_difference_is_demsars(k, q):
    assert critical_difference(k, 14) == pytest.approx(
        q * (k * (k + 1) / (6 * 14)) ** 0.5, rel=1e-3
    )


def test_a_block_in_which_a_model_lacks_a_value_is_left_out_of_the_ranks(tmp_path):
    source = made_up(tmp_path, lacking=[("swae", 4, seed) for seed in range(3)])
    assert rank_models(source, "sc").by_block.shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in {"components", "ranks"}])
def test_every_figure_is_valid_svg_and_png_and_the_same_twice(source, name):
    part = next(part for _, part in source.split(FIGURES[name].scope))
    options = {"metrics": ["sc"]} if name == "3" else {}
    first, second = (FIGURES[name].draw(part, **options) for _ in range(2))
    svg = to_svg(first)
    assert svg == to_svg(second)
    assert b"<dc:date>" not in svg
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    png = to_png(first)
    assert png == to_png(second)
    image = Image.open(io.BytesIO(png))
    image.verify()
    np.testing.assert_allclose(image.size, first.get_size_inches() * 200, atol=1)
    assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 5


def test_names_are_text_and_never_formulas(tmp_path):
    figure = FIGURES["3"].draw(made_up(tmp_path))
    assert "a $\\frac{1}$ <b>name</b>" in lines(figure.axes[0])
    ElementTree.fromstring(to_svg(figure))


def test_drawing_leaves_matplotlibs_settings_and_torchs_generator_alone(source):
    before = dict(mpl.rcParams)
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    to_png(FIGURES["samples"].draw(FigureSource.open(source.store.root, data=Path())))
    assert dict(mpl.rcParams) == before
    assert before["font.size"] != STYLE["font.size"]
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_notebooks_draw_with_one_call(trained):
    figure = hb.draw_figure(trained, "3", metrics=["sc"])
    assert lines(figure.axes[0]).keys() == {"VAE", "WAE-IMQ"}
    with pytest.raises(UnknownNameError, match="did you mean samples"):
        hb.draw_figure(trained, "sample")


@pytest.mark.parametrize(
    ("name", "select", "message"),
    [
        ("3", {}, "no run on digits has a value of sc, ch, db; compute them with"),
        ("4", {"seed": 7}, r"vae: no run with seed 7"),
        ("components", {}, "none of vae, wae-imq has components"),
        ("5b", {}, "this figure shows one model and the grid has vae, wae-imq; select one"),
        ("ranks", {}, "ranks need a metric with values of three models"),
    ],
)
def test_what_is_lacking_is_said(source, name, select, message):
    if name == "3":
        runs = {k: StoredRun(r.record, r.sha256, {}) for k, r in source.runs.items()}
        source = replace(source, runs=runs)
    with pytest.raises(FigureError, match=message):
        FIGURES[name].draw(source.select(**select))


def test_lost_weights_codes_and_data_are_named(source, trained, tmp_path):
    emptied = replace(source, store=Store(tmp_path), _loaded={})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not there; the run's weights"):
        FIGURES["5a"].draw(emptied)
    with pytest.raises(ArtifactError, match=r"codes\.safetensors: not there; the run's codes"):
        FIGURES["4"].draw(emptied)
    folder = tmp_path / "artifacts" / source.runs_to_draw()["vae"].record.key
    folder.mkdir(parents=True)
    (folder / "codes.safetensors").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=r"codes\.safetensors: damaged"):
        FIGURES["4"].draw(emptied)
    run = source.runs_to_draw()["vae"]
    other = StoredRun(run.record.model_copy(update={"data_digest": "x"}), run.sha256, run.metrics)
    with pytest.raises(FigureError, match="was trained on other digits data than what is in"):
        source.data("vae", other)


def test_files_are_named_after_what_they_show(tmp_path):
    source = made_up(tmp_path / "r")
    written = dict(write_figures(FIGURES["training"], source, tmp_path / "out"))
    assert {path.name for path in written} == {
        f"figure-training-digits-L{L}.{suffix}" for L in (2, 4, 8) for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size for path in written)
    with pytest.raises(FigureError, match=r"is 3 figures; select one with --latent-dim, or name"):
        next(write_figures(FIGURES["training"], source, tmp_path / "one.svg"))
    with pytest.raises(UserError, match=r"figures are written as \.svg or \.png"):
        save(FIGURES["3"].draw(source), tmp_path / "figure.bmp")
    reasons = [str(error) for _, error in draw_all(FIGURES["5a"], source)]
    assert len(reasons) == 3
    assert all("was trained on other digits data" in reason for reason in reasons)


def test_files_of_names_that_look_alike_are_told_apart(tmp_path, tiny_text):
    variants = """models:
  vae beta: { model: beta-vae, settings: { beta: 2 } }
  vae (beta): { model: beta-vae, settings: { beta: 3 } }
tables:"""
    text = tiny_text.replace("tables:", variants, 1)
    text = text.replace("[vae, wae-imq]", "[vae beta, vae (beta), vae]")
    source = FigureSource(parse_grid(text, "g.yaml"), Store(tmp_path), {}, tmp_path)
    kind = replace(FIGURES["training"], scope=("model",))
    written = [
        path.name for path, _ in write_figures(kind, source, tmp_path) if path.suffix == ".png"
    ]
    assert len(set(written)) == 3
    assert written[2] == "figure-training-vae.png"
    assert all(re.fullmatch(r"figure-training-vae-beta-[0-9a-f]{8}\.png", n) for n in written[:2])
    # A filter changes no name.
    alone = write_figures(kind, source.select(models=["vae (beta)"]), tmp_path)
    assert written[1] in {path.name for path, _ in alone}


def cli(*arguments):
    command = Path(sys.executable).with_name("hgmvae-bench")
    return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_writes_the_file_that_it_names(trained, tmp_path):
    output = tmp_path / "a.svg"
    outcome = cli("figure", "5a", "--results", trained, "--output", output)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == f"{output}\n"
    ElementTree.parse(output)
    outcome = cli("figure", "components", "--results", trained)
    assert outcome.returncode == 2
    assert outcome.stderr == (
        "error: none of vae, wae-imq has components; see component_probabilities in "
        "docs/how-to/plugins.md\n"
    )
    assert not (trained / "figures").exists()
