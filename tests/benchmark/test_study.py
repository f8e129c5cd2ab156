"""The committed study: records of its grid with today's defaults, and a page that says the same."""

import re
from pathlib import Path

import pytest

from hgmvae_bench import load_results
from hgmvae_bench.grid import load_grid
from hgmvae_bench.store import Store
from hgmvae_bench.tables import build_table

FOLDER = Path(__file__).parents[2] / "results/study"


@pytest.fixture(scope="module")
def table():
    grid = load_grid(str(FOLDER / "mnist.yaml"))
    return build_table(grid, grid.table("models"), Store(FOLDER / "mnist").runs().values())


def test_every_record_is_of_the_grid_with_todays_defaults(table):
    """A default that is changed leaves the study behind: choose it again, or say so on the page."""
    assert {entry.n for entry in table.entries} == {2}
    assert not any("other settings" in entry.note for entry in table.entries)


def test_the_page_says_what_the_records_say(table):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    titles = table.titles["model"]
    for model, title in titles.items():
        line = re.search(rf"^\| \**{re.escape(title)}\** \|(.*)\|$", page, re.MULTILINE)
        written = re.findall(r"([\d,.]+) ± ([\d,.]+)", line[1])
        entries = [entry for entry in table.entries if entry.model == model]
        assert len(written) == len(entries) == 6
        for (mean, spread), entry in zip(written, entries, strict=True):
            for text, value in ((mean, entry.mean), (spread, entry.std)):
                decimals = len(text.partition(".")[2])
                assert f"{value:,.{decimals}f}" == text


def test_the_measured_part_of_the_papers_grid_is_what_its_page_says():
    folder = FOLDER.parent / "measured"
    table = load_results(folder)
    table = table[table["metric"].notna()]
    columns = ["sc", "ch", "db", "svm-accuracy", "accuracy", "nmi", "ari", "ssim"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    cells = table.groupby("model")["cell"].first()
    assert {cell.identity for cell in load_grid("paper").cells} >= set(cells)
    assert f"{len(cells)} of its 83 cells are here" in page
    for model, title in {"hgmvae-u": "HGMVAE-U", "gmvae": "GMVAE"}.items():
        line = re.search(rf"^\| {title} \|(.*)\|$", page, re.MULTILINE)
        for text, metric in zip(line[1].split("|"), columns, strict=True):
            values = table[(table["model"] == model) & (table["metric"] == metric)]["value"]
            assert len(values) == 10
            mean, spread = text.strip().split(" ± ")
            for written, value in ((mean, values.mean()), (spread, values.std())):
                assert f"{value:,.{len(written.partition('.')[2])}f}" == written
