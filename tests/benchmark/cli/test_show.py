"""``table``, ``compare``, ``export`` and ``merge`` as a user calls them."""

import pandas as pd
import pytest

from hgmvae_bench.storage.store import Store


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
