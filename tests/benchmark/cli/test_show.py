"""``table``, ``compare``, ``export`` and ``merge`` as a user calls them."""

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hgmvae_bench.execution.results import Results
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store

MEASURED = Path(__file__).parents[3] / "results" / "measured"


@pytest.fixture
def measured(tmp_path):
    """Copy of the committed runs of the grid ``paper``."""
    return shutil.copytree(MEASURED, tmp_path / "measured")


@pytest.fixture
def two_grids(tiny, tiny_text):
    """The tiny grid's results, in a folder that also has the grid ``other`` of the VAE alone."""
    text = tiny_text.replace("name: tiny", "name: other").replace("[vae, wae-imq]", "[vae]")
    grid = parse_grid(text.replace("title: Clustering", "title: One model"), "other.yaml")
    Store(tiny / "r").add_grid(grid)
    return tiny


@pytest.mark.parametrize(
    ("name", "start"),
    [("text", "Table 1."), ("csv", "table,"), ("markdown", "**Table 1."), ("latex", "%")],
)
def test_a_table_in_every_format(cli, tiny_run, name, start):
    outcome = cli("table", "1", "--results", tiny_run / "r", "--format", name)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.startswith(start)


def test_a_table_shows_the_controls_on_demand(cli, tiny_run):
    # Neither SC nor k-means is computed of noise.
    assert len(list((tiny_run / "r" / "controls").iterdir())) == 1
    assert "PCA" not in (tiny_run / "stdout").read_text()
    outcome = cli("table", "1", "--controls", "--results", tiny_run / "r")
    assert outcome.exit_status == 0, outcome.stderr
    assert "PCA (control)" in outcome.stdout


def test_a_table_without_published_values_cannot_be_compared_with_the_paper(cli, tiny_run):
    outcome = cli("table", "1", "--results", tiny_run / "r", "--compare", "paper")
    assert outcome.exit_status == 2
    assert outcome.stderr.startswith("error: the paper has no value for any cell of table 1")


def test_a_table_is_compared_with_the_paper(cli, measured):
    files = sorted(measured.rglob("*"))
    command = ("table", "1", "--results", measured, "--compare", "paper")
    outcome = cli(*command)
    assert outcome.exit_status == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("Table 1 against the paper")
    assert "Claims" in lines[1:]
    outcome = cli(*command, "--format", "csv")
    assert outcome.exit_status == 0, outcome.stderr
    rows = pd.read_csv(io.StringIO(outcome.stdout))
    assert len(rows) == 63
    assert set(rows["table"]) == {1}
    [hgmvae] = rows.query("metric == 'sc' and model == 'hgmvae-u' and latent_dim == 8").itertuples()
    assert (hgmvae.published, hgmvae.planned) == (0.427, 10)
    assert hgmvae.difference == pytest.approx(hgmvae.mean - hgmvae.published)
    assert sorted(measured.rglob("*")) == files


def test_measured_results_have_every_published_value_and_claim(measured):
    results = Results(measured)
    values = results.compare()
    assert len(values) == 392
    assert values.loc[values["n"] == 0, "verdict"].unique().tolist() == ["missing"]
    assert (values.loc[values["n"] > 1, "verdict"] != "missing").all()
    claims = results.claims()
    assert "hgmvae-beats-gmvae" in set(claims["claim"])
    assert set(claims["outcome"]) <= {"holds", "fails", "undecided", "not measured"}


@pytest.mark.parametrize(
    "command",
    [("table", "1"), ("export", "--output", "e"), ("evaluate", "--metrics", "nmi")],
    ids=lambda command: command[0],
)
def test_a_grid_of_several_is_chosen_by_name(cli, two_grids, command):
    outcome = cli(*command, "--results", "r", cwd=two_grids)
    assert outcome.exit_status == 2
    assert "r holds the grids other, tiny; choose one with --grid" in outcome.stderr
    outcome = cli(*command, "--results", "r", "--grid", "other", cwd=two_grids)
    assert outcome.exit_status == 0, outcome.stderr
    exported = two_grids / "e" / "table-1.txt"
    shown = exported.read_text() if exported.exists() else outcome.stdout
    assert "One model" in shown
    assert "WAE-IMQ" not in shown
    outcome = cli(*command, "--results", "r", "--grid", "otherx", cwd=two_grids)
    assert outcome.exit_status == 2
    assert "did you mean other" in outcome.stderr


def test_a_file_in_place_of_the_results_folder_is_refused(cli, tiny_run):
    file = tiny_run / "tiny.yaml"
    outcome = cli("table", "1", "--results", file)
    assert outcome.exit_status == 2
    assert "--results" in outcome.stderr
    assert f"expected a folder, got the file {file}" in outcome.stderr


def test_a_table_fits_a_terminal_and_has_its_full_width_in_a_pipe(cli, tiny_run):
    command = ("compare", tiny_run / "r", tiny_run / "r")
    on_terminal, in_pipe = (cli(*command, terminal=tty, columns=80) for tty in (True, False))
    assert on_terminal.exit_status == in_pipe.exit_status == 0
    width = [max(map(len, shown.stdout.splitlines())) for shown in (on_terminal, in_pipe)]
    assert width[0] <= 80 < width[1]


def test_folders_are_compared_cell_by_cell(cli, tiny):
    outcome = cli("compare", "r", "r", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.endswith("\n4 equal\n")
    outcome = cli("compare", "r", "r", "--format", "markdown", cwd=tiny)
    rows = [line for line in outcome.stdout.splitlines() if line.startswith("|")]
    assert sum("equal" in row for row in rows) == 4


def test_export_writes_every_table_and_every_value(cli, tiny):
    outcome = cli("export", "--results", "r", "--output", "e", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.startswith("6 files in e")
    for suffix in ("csv", "md", "tex", "txt"):
        name = f"table-1.{suffix}"
        exported, printed = (tiny / path / name for path in ("e", "r/tables/tiny"))
        assert exported.read_text() == printed.read_text()
    values = pd.read_parquet(tiny / "e" / "values.parquet")
    assert len(values) == 4 * 2


def test_the_generated_parts_of_a_page_are_written(cli, tiny):
    page = tiny / "page.md"
    begin, end = "<!-- begin: measured values, generated -->", "<!-- end: measured values -->"
    page.write_text(f"# Runs\n\n{begin}\n{end}\n")
    outcome = cli("page", "page.md", "--results", "r", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert (
        "2 of the grid's 2 cells have a complete run: 2 with 2 seeds. No run failed"
        in page.read_text()
    )
    assert page.read_text().startswith(f"# Runs\n\n{begin}\n")


def test_a_page_without_generated_parts_is_refused_and_kept(cli, tiny):
    page = tiny / "plain.md"
    page.write_text("# Runs\n")
    outcome = cli("page", "plain.md", "--results", "r", cwd=tiny)
    assert outcome.exit_status == 2
    assert "plain.md" in outcome.stderr
    assert "generated part" in outcome.stderr
    assert page.read_text() == "# Runs\n"


def test_merged_folders_give_the_same_table(cli, tiny):
    outcome = cli("merge", "r", "r", "--into", "m", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.splitlines() == [
        "r: 4 runs copied, 0 already there",
        "r: 0 runs copied, 4 already there",
    ]
    assert len(Store(tiny / "m").runs()) == 4
    tables = [cli("table", "1", "--results", folder, cwd=tiny).stdout for folder in ("r", "m")]
    assert tables[0] == tables[1]


def test_merging_warns_of_different_results_and_names_the_folder_that_counts(
    cli, tiny_grid, tmp_path
):
    run = Run(next(iter(tiny_grid.cells)), 0, "d")
    for day, folder in enumerate(("early", "late"), start=1):
        content = {
            "metrics": {"sc": MetricValue(value=day / 10)},
            "finished_at": f"2026-01-0{day}T00:00:00+00:00",
        }
        Store(tmp_path / folder).add(Record.of(run, status="complete", **content))
    for first, second, counts in (("early", "late", "x"), ("late", "early", "early")):
        target = "x" if first == "early" else "y"
        outcome = cli("merge", first, second, "--into", target, cwd=tmp_path)
        assert outcome.exit_status == 0, outcome.stderr
        assert f"{run.key}: the results differ; the record of {counts} counts" in outcome.stderr
        assert outcome.stderr.count("differ") == 1
        [merged] = Store(tmp_path / target).runs().values()
        assert merged.metrics["sc"].value == 0.1
