"""The committed studies: records with today's defaults, and a page that says the same."""

import re
from pathlib import Path

import pytest

from hgmvae_bench import load_results
from hgmvae_bench.analysis.tables import Table, build_table
from hgmvae_bench.grid import load_grid
from hgmvae_bench.storage.store import Store

FOLDER = Path(__file__).parents[3] / "results/study"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^<!-- (\S+): (\S+), seeds: ([\d ]+) -->$", PAGE, re.MULTILINE)
"""Study, table and numbers of seeds of every table of the page that is written from records."""


def built(study: str, name: str) -> Table:
    grid = load_grid(str(FOLDER / f"{study}.yaml"))
    return build_table(grid, grid.table(name), Store(FOLDER / study).runs().values())


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a Markdown table by what its rows begin with, until its first empty line."""
    lines = [line.strip("|").split("|") for line in text.strip().partition("\n\n")[0].splitlines()]
    return {first.strip(" *"): [cell.strip(" *") for cell in rest] for first, *rest in lines[2:]}


def as_written(written: str, *values: float) -> str:
    """Values with as many decimals as are written."""
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


def test_the_page_has_tables_of_every_study():
    folders = {path.name for path in FOLDER.iterdir() if (path / "records").is_dir()}
    assert {study for study, _, _ in TABLES} == folders >= {"mnist", "fashion-mnist"}


@pytest.mark.parametrize("study", sorted({study for study, _, _ in TABLES}))
def test_a_studys_folder_knows_every_table_of_its_grid(study):
    assert Store(FOLDER / study).grid().spec == load_grid(str(FOLDER / f"{study}.yaml")).spec


@pytest.mark.parametrize(("study", "name", "seeds"), TABLES)
def test_the_page_says_what_records_with_todays_defaults_say(study, name, seeds):
    """A default that is changed leaves the study behind: choose it again, or say so on the page."""
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


def test_the_measured_part_of_the_papers_grid_is_what_its_page_says():
    folder = FOLDER.parent / "measured"
    table = load_results(folder)
    table = table[table["metric"].notna()]
    columns = ["sc", "ch", "db", "svm-accuracy", "accuracy", "nmi", "ari", "ssim"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    cells = table.groupby(["model", "latent_dim"])["cell"].first()
    assert {cell.identity for cell in load_grid("paper").cells} >= set(cells)
    assert f"{len(cells)} of its 83 cells are here" in page
    assert Store(folder).grid().spec == load_grid("paper").spec
    models = {
        "hgmvae-u": "HGMVAE-U",
        "gmvae": "GMVAE",
        "hgmvae-g": "HGMVAE-G",
        "vae": "VAE",
        "beta-vae": "β-VAE",
        "swae": "SWAE",
        "wae-imq": "WAE-IMQ",
        "wae-rbf": "WAE-RBF",
    }
    for model, title in models.items():
        line = re.search(rf"^\| {title} \|(.*)\|$", page, re.MULTILINE)
        of_model = table[(table["model"] == model) & (table["latent_dim"] == 8)]
        for text, metric in zip(line[1].split("|"), columns, strict=True):
            values = of_model[of_model["metric"] == metric]["value"]
            n_seeds = 10 if title in {"HGMVAE-U", "GMVAE"} else 4
            assert len(values) == (0 if text.strip() == "–" else n_seeds)
            if len(values):
                assert text.strip() == as_written(text.strip(), values.mean(), values.std())
    ablations = {
        "hgmvae-u-nofisher": "HGMVAE-U w/o Fisher",
        "hgmvae-g-nofisher": "HGMVAE-G w/o Fisher",
    }
    for model, title in ablations.items():
        line = re.search(rf"^\| {title} \|(.*)\|$", page, re.MULTILINE)
        of_model = table[(table["model"] == model) & (table["latent_dim"] == 8)]
        for text, metric in zip(line[1].split("|"), ["sc", "ch", "db"], strict=True):
            values = of_model[of_model["metric"] == metric]["value"]
            assert len(values) == 2
            assert text.strip() == as_written(text.strip(), values.mean(), values.std())
    reconstruction = ["ssim", "ms-ssim", "sc", "ch", "db"]
    for model, title in {"hgmvae-u": "HGMVAE-U", "vae": "VAE"}.items():
        line = re.search(rf"^\| {title}, L = 128 \|(.*)\|$", page, re.MULTILINE)
        of_model = table[(table["model"] == model) & (table["latent_dim"] == 128)]
        values = of_model.set_index("metric")["value"]
        for text, metric in zip(line[1].split("|"), reconstruction, strict=True):
            if metric in values:
                assert text.strip() == as_written(text.strip(), values[metric])
            else:
                assert text.strip() == "–"
