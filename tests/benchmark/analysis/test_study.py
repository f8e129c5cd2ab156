"""The committed studies and measurements: their pages agree with their records."""

import re
from pathlib import Path

import pytest

from hgmvae_bench import Results
from hgmvae_bench.analysis.page import update_page
from hgmvae_bench.analysis.tables import Table, build_table
from hgmvae_bench.grid import load_grid
from hgmvae_bench.storage.store import Store

FOLDER = Path(__file__).parents[3] / "results/study"
MEASURED = FOLDER.parent / "measured"
MEASURED_PAGE = (MEASURED / "README.md").read_text(encoding="utf-8")
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
GENERATED = [
    path
    for path in sorted(MEASURED.parent.glob("*/README.md"))
    if ", generated -->" in path.read_text(encoding="utf-8")
]
"""Pages with generated parts, each in the folder of its records."""
TABLES = re.findall(r"^<!-- (\S+): (\S+), seeds: ([\d ]+) -->$", PAGE, re.MULTILINE)
"""Study, table and numbers of seeds of every table of the page that comes from records."""


def built(study: str, name: str) -> Table:
    grid = load_grid(str(FOLDER / f"{study}.yaml"))
    return build_table(grid, grid.table(name), Store(FOLDER / study).runs().values())


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table, up to its first empty line, by the first cell of their row."""
    lines = [line.strip("|").split("|") for line in text.strip().partition("\n\n")[0].splitlines()]
    return {first.strip(" *"): [cell.strip(" *") for cell in rest] for first, *rest in lines[2:]}


def front_page(path: str) -> str:
    """Text of a page of the repository, on one line."""
    return " ".join((FOLDER.parents[1] / path).read_text(encoding="utf-8").split())


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


def test_the_measured_cells_are_cells_of_the_paper_grid():
    assert Store(MEASURED).grid().spec == load_grid("paper").spec
    cells = {run.record.cell for run in Store(MEASURED).runs().values()}
    assert {cell.identity for cell in load_grid("paper").cells} >= cells


def test_the_measured_cells_and_the_ablations_have_generated_pages():
    assert {page.parent.name for page in GENERATED} >= {"measured", "ablations", "disentanglement"}


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.parent.name)
def test_the_generated_parts_of_a_page_are_those_of_its_records(path):
    """If this fails, `hgmvae-bench page PAGE --results FOLDER` regenerates them."""
    results = Results(path.parent)
    page = path.read_text(encoding="utf-8")
    assert update_page(page, results.grid, results.runs, results.controls) == page


@pytest.mark.parametrize("path", ["README.md", "docs/index.md"])
def test_the_front_pages_count_values_as_the_measured_page_does(path):
    text = front_page(path)
    total, published = re.search(r"^(\d+) of (\d+) published values", MEASURED_PAGE, re.M).groups()
    assert f"Of the paper's {published} published values, {total} have been measured" in text
    by_verdict = rows(MEASURED_PAGE[MEASURED_PAGE.index("| Verdict |") :])
    counts = {verdict: levels[0] for verdict, levels in by_verdict.items()}
    assert counts.pop("all") == total
    for verdict, count in counts.items():
        assert f"{count} {verdict}" in text


def test_the_readme_counts_cells_as_the_measured_page_does():
    readme = front_page("README.md")
    by_seeds = {seeds: n for n, seeds in re.findall(r"(\d+) with (\d+) seeds", MEASURED_PAGE)}
    assert (
        f"{by_seeds['10']} of the paper's 83 cells are measured with all ten seeds and " in readme
    )
    assert f"{by_seeds['4']} with four." in readme
