"""Heatmap of the paper's values by verdict."""

from dataclasses import replace
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from skimage.color import deltaE_ciede2000, rgb2lab
from typer.testing import CliRunner

from hgmvae_bench.analysis.comparison import VERDICT_SYMBOLS, ValueVerdict
from hgmvae_bench.analysis.figures import FIGURES, FigureError, FigureSource, verdicts
from hgmvae_bench.analysis.figures.style import to_svg
from hgmvae_bench.analysis.figures.verdicts import VERDICT_STYLES, published_tables
from hgmvae_bench.cli import app
from hgmvae_bench.grid import Run, load_grid
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun

# Matrices for linear RGB at full severity (Machado, Oliveira & Fernandes 2009, IEEE TVCG 15).
COLOR_BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linearize(color):
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]


def luminance(color):
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linearize(color), strict=True))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def with_spec(grid, **changes):
    """Copy of a grid with another specification."""
    spec = grid.spec.model_copy(update=changes)
    return replace(grid, spec=spec, full_spec=spec)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The paper's grid with four seeds of SC at L = 8: GMVAE as published, HGMVAE-G far below."""
    grid, store = load_grid("paper"), Store(tmp_path_factory.mktemp("verdicts"))
    store.add_grid(grid)
    for model, mean in (("gmvae", 0.404), ("hgmvae-g", 0.2)):
        for seed in range(4):
            metrics = {"sc": MetricValue(value=mean + (seed - 1.5) / 90)}
            run = Run(grid.cell("mnist", model, 8), seed, "d")
            store.add(Record.of(run, status="complete", metrics=metrics))
    return FigureSource.open(store.root)


@pytest.fixture(scope="module")
def figure(source):
    return FIGURES["verdicts"].draw(source)


def test_every_verdict_has_its_own_colour_and_symbol():
    assert set(get_args(ValueVerdict)) == set(VERDICT_STYLES)
    assert set(VERDICT_SYMBOLS) == set(VERDICT_STYLES)
    assert len(set(VERDICT_SYMBOLS.values())) == len(VERDICT_STYLES)
    assert len({look.color for look in VERDICT_STYLES.values()}) == len(VERDICT_STYLES)


@pytest.mark.parametrize("verdict", sorted(set(get_args(ValueVerdict)) - {"missing"}))
def test_symbols_can_be_read_on_their_colour(verdict):
    look = VERDICT_STYLES[verdict]
    assert contrast(look.color, look.text_color) >= 4.5


@pytest.mark.parametrize("deficiency", COLOR_BLINDNESS)
def test_colours_differ_for_colour_blind_readers(deficiency):
    linear = np.array([linearize(look.color) for look in VERDICT_STYLES.values()])
    seen = np.clip(linear @ np.array(COLOR_BLINDNESS[deficiency]).T, 0, 1)
    encoded = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(encoded)
    differences = deltaE_ciede2000(lab[:, None], lab[None])
    assert differences[np.triu_indices(len(lab), 1)].min() >= 10


def test_the_tables_hold_every_published_value_once():
    tables = published_tables(load_grid("paper"))
    # Counted in results/paper/tables.csv.
    expected = {"1": 63, "2": 16, "3": 128, "4": 105, "5": 80}
    assert {name: len(table.values) for name, table in tables.items()} == expected
    gmvae = tables["1"].values[("SC ↑", "GMVAE"), ("", "8")]
    assert gmvae == ("1", "mnist", "sc", "gmvae", 8)


def test_the_heatmap_shows_verdicts_and_seeds(figure):
    (axes,) = figure.axes
    colors = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert all(isinstance(patch, Rectangle) for patch in axes.patches)
    # One patch for each value and one for each entry of the legend.
    assert len(colors) == 392 + len(VERDICT_STYLES)
    worse = VERDICT_STYLES["worse"]
    # Table 4 has the cells of Table 1 too.
    assert colors.count(worse.color.lower()) == 2 + 1
    texts = [text.get_text() for text in axes.texts]
    assert texts.count(f"{VERDICT_SYMBOLS['worse']} 4") == 2
    assert f"{worse.description}: 2" in texts
    assert figure.get_suptitle() == "4 of the paper's 392 values measured"
    assert "2 worse" in figure.get_label()


def test_each_table_shows_its_own_verdict(source, monkeypatch):
    compare = verdicts.compare_with_paper

    def better_in_table_4(grid, tables):
        return [
            replace(each, verdict="better") if each.paper_table == "4" and each.n else each
            for each in compare(grid, tables)
        ]

    monkeypatch.setattr(verdicts, "compare_with_paper", better_in_table_4)
    texts = [text.get_text() for text in FIGURES["verdicts"].draw(source).axes[0].texts]
    assert {"better: 2", "worse: 1", "not distinguishable: 1"} <= set(texts)


def test_a_repeated_value_counts_in_every_table(source):
    # A grid without Table 4, which repeats the values of Table 1.
    part = with_spec(source.grid, tables=source.grid.spec.tables[:1])
    texts = FIGURES["verdicts"].draw(replace(source, grid=part)).axes[0].texts
    assert {"worse: 2", "not distinguishable: 2"} <= {text.get_text() for text in texts}


def test_the_title_counts_values_with_other_settings(source):
    training = source.grid.spec.training.model_copy(update={"epochs": 3})
    grid = with_spec(source.grid, training=training)
    runs = {}
    for run in source.runs.values():
        name = "gmvae" if "_gmvae_" in run.record.key else "hgmvae-g"
        cell = grid.cell("mnist", name, 8)
        record = Record.of(
            Run(cell, run.record.seed, "d"), status="complete", metrics=run.record.metrics
        )
        runs[record.key] = StoredRun(record, record.key, dict(record.metrics))
    figure = FIGURES["verdicts"].draw(replace(source, grid=grid, runs=runs))
    assert "4 of the paper's 392 values measured, 4 of them with other" in figure.get_suptitle()


def test_texts_stay_inside_the_figure_and_apart(figure):
    texts = [*figure.texts, *figure.axes[0].texts]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    left, bottom, right, top = boxes.T
    width, height = figure.bbox.size
    assert left.min() >= 0
    assert bottom.min() >= 0
    assert right.max() <= width
    assert top.max() <= height
    overlap = (left < right[:, None]) & (left[:, None] < right)
    overlap &= (bottom < top[:, None]) & (bottom[:, None] < top)
    pairs = [(texts[i], texts[j]) for i, j in zip(*np.nonzero(np.triu(overlap, 1)), strict=True)]
    assert pairs == []


def test_the_svg_is_deterministic(source, figure):
    svg = to_svg(figure)
    assert svg == to_svg(FIGURES["verdicts"].draw(source))
    ElementTree.fromstring(svg)


def test_grids_without_published_cells_are_refused(made_up):
    with pytest.raises(FigureError, match=r"no value.*made-up"):
        FIGURES["verdicts"].draw(made_up())


def test_filtered_grids_are_refused(source):
    with pytest.raises(FigureError, match="omit the filters"):
        FIGURES["verdicts"].draw(source.select(models=["gmvae"]))


def test_export_writes_the_heatmap(source, figure, tmp_path):
    command = ["export", "--results", str(source.store.root), "--output", str(tmp_path)]
    outcome = CliRunner().invoke(app, command, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert (tmp_path / "figure-verdicts.svg").read_bytes() == to_svg(figure)
    assert (tmp_path / "figure-verdicts.png").stat().st_size > 10_000
