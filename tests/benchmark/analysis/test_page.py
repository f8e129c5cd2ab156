"""Generated parts of pages: their values, and pages that cannot have them."""

import dataclasses
import statistics

import pytest

from hgmvae_bench.analysis.comparison import compare_with_paper
from hgmvae_bench.analysis.measured_values import measured_values
from hgmvae_bench.analysis.page import PARTS, PageError, update_page
from hgmvae_bench.grid import load_grid
from hgmvae_bench.storage.schema import ControlRecord, MetricValue

BEGIN = "<!-- begin: measured values, generated -->"
END = "<!-- end: measured values -->"


@pytest.fixture(scope="module")
def grid():
    return load_grid("paper").select(datasets=["mnist"], latent_dims=[4, 8])


@pytest.fixture(scope="module")
def runs(grid, published_runs):
    """Ten seeds of GMVAE and one of HGMVAE-U at L = 8, four of HGMVAE-U at L = 4."""
    seeds = {("gmvae", 8): 10, ("hgmvae-u", 8): 1, ("hgmvae-u", 4): 4}
    return [
        run
        for run in published_runs(grid, noise=0.02, seeds=10)
        if run.record.seed
        < seeds.get(
            (run.record.settings["model"]["name"], run.record.settings["latent_dim"]),
            0,
        )
    ]


def lines_of(markdown):
    """Lines of the tables: cells by the first three, which are model, latent dim and n."""
    cells = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in cells]


def test_measured_values_stand_above_the_published_ones(grid, runs):
    lines = lines_of(measured_values(grid, runs))
    assert lines[0][:6] == ["Model", "L", "n", "SC ↑", "CH ↑", "DB ↓"]
    # By latent dim, then in the order of the paper's tables.
    assert [line[:3] for line in lines[2::2]] == [
        ["HGMVAE-U", "4", "4"],
        ["GMVAE", "8", "10"],
        ["HGMVAE-U", "8", "1"],
    ]
    assert {tuple(line[:3]) for line in lines[3::2]} == {("published", "", "")}
    # Table 1 of the paper.
    assert lines[5][3:6] == ["0.404", "3,428.8", "0.956"]
    values = [
        run.metrics["sc"].value for run in runs if run.record.settings["model"]["name"] == "gmvae"
    ]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    assert lines[4][3] == f"{mean:.3f} ± {std:.3f} ✓"
    assert lines[6][3].endswith(" ?")
    assert "±" not in lines[6][3]


def test_controls_with_codes_have_a_row_below_the_models(grid, runs):
    first = runs[0].record
    value = MetricValue(value=0.0625, fingerprint=runs[0].metrics["sc"].fingerprint)

    def control(name, title, latent_dim):
        return ControlRecord(
            key=f"mnist_{name}{'' if latent_dim is None else '_L8'}_1",
            control=name,
            title=title,
            dataset="mnist",
            image_size=32,
            train_images=first.settings["training"]["train_images"],
            comparable=True,
            data_digest=first.data_digest,
            latent_dim=latent_dim,
            metrics={"sc": value},
        )

    pca, mean = control("pca", "PCA", 8), control("mean-image", "Mean image", None)
    lines = lines_of(measured_values(grid, runs, [pca, mean]))
    assert [line[:4] for line in lines if "control" in line[0]] == [
        ["PCA (control)", "8", "", "0.062"]
    ]
    assert lines[-1][0] == "PCA (control)"
    assert lines[:-1] == lines_of(measured_values(grid, runs))


def test_cells_are_counted_by_their_seeds(grid, runs):
    text = measured_values(grid, runs)
    n_cells = len(grid.cells)
    assert f"3 of the grid's {n_cells} cells" in text
    assert "1 with 10 seeds, 1 with 4 seeds, 1 with 1 seed." in text
    assert f"0 of the grid's {n_cells} cells" in measured_values(grid, [])


def test_the_legend_explains_two_verdicts_on_one_value(grid, runs, monkeypatch):
    assert "Two symbols" not in measured_values(grid, runs)

    def worse_in_table_4(grid, tables):
        return [
            dataclasses.replace(each, verdict="worse") if each.table == "4" else each
            for each in compare_with_paper(grid, tables)
        ]

    monkeypatch.setattr(
        "hgmvae_bench.analysis.measured_values.compare_with_paper", worse_in_table_4
    )
    text = measured_values(grid, runs)
    assert "?/▼" in text
    assert "Two symbols" in text


def test_a_page_keeps_what_is_not_generated(grid, runs):
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nText\n"
    once = update_page(page, grid, runs, [])
    assert once == f"# Title\n\n{BEGIN}\n\n{measured_values(grid, runs)}\n\n{END}\n\nText\n"
    assert update_page(once, grid, runs, []) == once


def test_every_part_can_be_on_a_page(grid, runs):
    page = "\n".join(f"<!-- begin: {name}, generated -->\n<!-- end: {name} -->" for name in PARTS)
    text = update_page(page, grid, runs, [])
    assert all(write(grid, runs, []) in text for write in PARTS.values())


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("", "no generated part"),
        (f"{BEGIN}\n", "end: measured values"),
        (f"{END}\n{BEGIN}\n", "end: measured values"),
        (f"{BEGIN}\n{END}\n" * 2, "one line"),
        (BEGIN.replace("values", "dreams") + "\n", "measured dreams.*measured values"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused(grid, runs, page, named):
    with pytest.raises(PageError, match=named):
        update_page(page, grid, runs, [])
