"""The committed studies and measurements: their pages agree with their records."""

import re
from pathlib import Path

import pytest

from hgmvae_bench import load_results, load_tables
from hgmvae_bench.analysis.summary import paper_summary, replace_summary
from hgmvae_bench.analysis.tables import Table, build_table
from hgmvae_bench.grid import load_grid
from hgmvae_bench.storage.store import Store

FOLDER = Path(__file__).parents[3] / "results/study"
MEASURED = FOLDER.parent / "measured"
MEASURED_PAGE = (MEASURED / "README.md").read_text(encoding="utf-8")
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^<!-- (\S+): (\S+), seeds: ([\d ]+) -->$", PAGE, re.MULTILINE)
"""Study, table and numbers of seeds of every table of the page that comes from records."""


def built(study: str, name: str) -> Table:
    grid = load_grid(str(FOLDER / f"{study}.yaml"))
    return build_table(grid, grid.table(name), Store(FOLDER / study).runs().values())


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table, up to its first empty line, by the first cell of their row."""
    lines = [line.strip("|").split("|") for line in text.strip().partition("\n\n")[0].splitlines()]
    return {first.strip(" *"): [cell.strip(" *") for cell in rest] for first, *rest in lines[2:]}


def as_written(written: str, *values: float) -> str:
    """Format values with as many decimals as the page has."""
    parts = written.split(" ± ")
    return " ± ".join(
        f"{value:,.{len(part.partition('.')[2])}f}"
        for part, value in zip(parts, values, strict=False)
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_of_the_study_is_valid(path):
    grid = load_grid(str(path))
    assert grid.spec.name == f"study-{path.stem}"
    assert grid.cells


def test_the_study_page_has_a_table_of_every_study():
    folders = {path.name for path in FOLDER.iterdir() if (path / "records").is_dir()}
    assert {study for study, _, _ in TABLES} == folders >= {"mnist", "fashion-mnist"}


@pytest.mark.parametrize("study", sorted({study for study, _, _ in TABLES}))
def test_the_folder_of_a_study_has_its_grid(study):
    assert Store(FOLDER / study).grid().spec == load_grid(str(FOLDER / f"{study}.yaml")).spec


@pytest.mark.parametrize(("study", "name", "seeds"), TABLES)
def test_the_study_page_has_the_numbers_of_records_with_the_current_defaults(study, name, seeds):
    """A changed default makes the study outdated: repeat it, or say so on the page."""
    table = built(study, name)
    assert not any("other settings" in entry.note for entry in table.entries)
    assert {entry.n for entry in table.entries if entry.n} == {int(n) for n in seeds.split()}
    text = PAGE.split(f"<!-- {study}: {name}, seeds: {seeds} -->")[1]
    on_page = rows(text)
    titles = table.titles["model"]
    measured = {model for model in titles if any(e.n for e in table.entries if e.model == model)}
    assert measured
    for model in measured:
        entries = [entry for entry in table.entries if entry.model == model]
        cells = on_page[titles[model]]
        for written, entry in zip(cells, entries, strict=True):
            spread = [entry.std] if entry.n > 1 else []
            assert written == as_written(written, entry.mean, *spread)
            assert ("±" in written) == (entry.n > 1)


CLUSTERING = ["sc", "ch", "db"]
FIRST_TABLE = [*CLUSTERING, "svm-accuracy", "accuracy", "nmi", "ari", "ssim"]
WITH_TEN_SEEDS = {"hgmvae-u", "gmvae"}
MEASURED_ROWS = {
    # Title of a row, its model and latent dim, the metrics of its columns, and its seeds.
    **{
        title: (model, 8, FIRST_TABLE, 10 if model in WITH_TEN_SEEDS else 4)
        for title, model in {
            "HGMVAE-U": "hgmvae-u",
            "GMVAE": "gmvae",
            "HGMVAE-G": "hgmvae-g",
            "VAE": "vae",
            "β-VAE": "beta-vae",
            "SWAE": "swae",
            "WAE-IMQ": "wae-imq",
            "WAE-RBF": "wae-rbf",
        }.items()
    },
    "HGMVAE-U w/o Fisher": ("hgmvae-u-nofisher", 8, CLUSTERING, 2),
    "HGMVAE-G w/o Fisher": ("hgmvae-g-nofisher", 8, CLUSTERING, 2),
    "HGMVAE-U, L = 128": ("hgmvae-u", 128, ["ssim", "ms-ssim", *CLUSTERING], 1),
    "VAE, L = 128": ("vae", 128, ["ssim", "ms-ssim", *CLUSTERING], 1),
}


@pytest.fixture(scope="module")
def measured():
    """Values of the measured part of the paper's grid."""
    values = load_results(MEASURED)
    return values[values["metric"].notna()]


@pytest.mark.parametrize("title", MEASURED_ROWS)
def test_the_measured_page_has_the_numbers_of_its_records(measured, title):
    model, latent_dim, metrics, n_seeds = MEASURED_ROWS[title]
    (line,) = re.findall(rf"^\| {title} \|(.*)\|$", MEASURED_PAGE, re.MULTILINE)
    of_cell = measured[(measured["model"] == model) & (measured["latent_dim"] == latent_dim)]
    for cell, metric in zip(line.split("|"), metrics, strict=True):
        values = of_cell[of_cell["metric"] == metric]["value"]
        assert len(values) == (0 if cell.strip() == "–" else n_seeds)
        if len(values):
            spread = [values.std()] if n_seeds > 1 else []
            assert cell.strip() == as_written(cell.strip(), values.mean(), *spread)


def test_the_measured_cells_are_cells_of_the_paper_grid(measured):
    cells = set(measured["cell"])
    assert {cell.identity for cell in load_grid("paper").cells} >= cells
    assert f"{len(cells)} of its 83 cells are here" in MEASURED_PAGE
    assert Store(MEASURED).grid().spec == load_grid("paper").spec


def test_the_measured_page_has_the_verdicts_of_its_records():
    summary = paper_summary(Store(MEASURED).grid(), load_tables(MEASURED).values())
    assert replace_summary(MEASURED_PAGE, summary) == MEASURED_PAGE
