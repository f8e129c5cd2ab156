import dataclasses
import io
import re

import pandas as pd
import pytest

from hgmvae_bench.analysis.render import (
    FormattedEntry,
    FormattedTable,
    footnote_letters,
    to_csv,
    to_latex,
    to_markdown,
    to_text,
)
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.grid import parse_grid
from hgmvae_bench.utils.text import escape_controls

HOSTILE = "\x1b[31mred\x00\u202egnp\u2066 \\input{/etc/passwd} \\write18{rm -rf} =1+1\r\nnext"


def test_csv_has_full_precision(tiny_grid, read_csv, digits_run):
    third = 1 / 3
    runs = [
        digits_run(tiny_grid, m, s, third * (s + 1)) for m in ("vae", "wae-imq") for s in (0, 1)
    ]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    read = read_csv(io.StringIO(to_csv(table.formatted)))
    read["note"] = read["note"].astype(object).fillna("")
    pd.testing.assert_frame_equal(read, table.values, check_dtype=False, check_exact=True)


def test_text_has_the_layout_of_the_table(tiny_grid, tiny_runs):
    lines = to_text(build_table(tiny_grid, tiny_grid.table("1"), tiny_runs).formatted).splitlines()
    assert lines[0] == "Table 1. Clustering"
    assert lines[2].split() == ["Model", "VAE", "WAE-IMQ"]
    assert lines[4].split() == ["SC↑", "0.200", "±", "0.141²⁼", "0.500", "±", "0.000¹⁼"]


def test_latex_marks_the_best_three_and_escapes(tiny_text, digits_run):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, beta-vae, wae-imq, odd]").replace(
        "tables:", 'models: { odd: { model: wae-rbf, title: "50% & ~a_b" } }\ntables:', 1
    )
    grid = parse_grid(text, "g.yaml")
    models = ("vae", "beta-vae", "wae-imq", "odd")
    runs = [digits_run(grid, m, 0, 0.4 - i / 10) for i, m in enumerate(models)]
    latex = to_latex(build_table(grid, grid.table("1"), runs).formatted)
    assert r"\textbf{0.400}" in latex
    assert r"\textbf{\textit{0.300}}" in latex
    assert r" \textit{0.200}" in latex
    assert " 0.100" in latex
    assert r"50\% \& $\sim$a\_b" in latex
    assert r"$\beta$-VAE" in latex
    assert r"\toprule" in latex


def test_markdown_marks_the_best_three_and_escapes(tiny_text, digits_run):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, beta-vae, wae-imq, odd]").replace(
        "tables:", 'models: { odd: { model: wae-rbf, title: "a|b <i> *c*" } }\ntables:', 1
    )
    grid = parse_grid(text, "g.yaml")
    models = ("vae", "beta-vae", "wae-imq", "odd")
    runs = [
        digits_run(grid, m, s, 0.4 - i / 10 + s / 10**5)
        for i, m in enumerate(models)
        for s in range(2)
    ]
    lines = to_markdown(build_table(grid, grid.table("1"), runs).formatted).splitlines()
    assert lines[0] == "**Table 1. Clustering**"
    assert lines[2] == r"| Metric | VAE | β-VAE | WAE-IMQ | a\|b &lt;i&gt; \*c\* |"
    assert lines[3] == "| --- | --- | --- | --- | --- |"
    assert lines[4] == (
        "| SC↑ | **0.400 ± 0.000** | ***0.300 ± 0.000*** | *0.200 ± 0.000* | 0.100 ± 0.000 |"
    )


@pytest.mark.parametrize(
    ("rows", "columns", "heads"),
    [
        ("[metric, model]", "[latent_dim]", "| Metric | Model | L = 2 | L = 4 |"),
        ("[metric]", "[latent_dim, model]", "| Metric | L = 2 / VAE | L = 2 / WAE-IMQ | L = 4 /"),
    ],
)
def test_markdown_headings_name_the_latent_dim(tiny_text, rows, columns, heads):
    text = tiny_text.replace("latent_dims: [2]", "latent_dims: [2, 4]")
    text = re.sub(r"rows: .*", f"rows: {rows}", re.sub(r"columns: .*", f"columns: {columns}", text))
    grid = parse_grid(text, "g.yaml")
    lines = to_markdown(build_table(grid, grid.table("1"), []).formatted).splitlines()
    assert lines[2].startswith(heads)


def test_negative_values_have_a_minus(tiny_grid, digits_run):
    runs = [digits_run(tiny_grid, m, s, -0.25) for m in ("vae", "wae-imq") for s in (0, 1)]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs).formatted
    assert "−0.250 ± 0.000" in to_text(table)
    assert "**−0.250 ± 0.000**" in to_markdown(table)
    assert r"\textbf{$-$0.250 $\pm$ 0.000}" in to_latex(table)
    assert ",-0.25," in to_csv(table)


def table_of(text, *, columns=1, rows=2, **content):
    """A table with one text in every place: entries, names, title, legend, notes and CSV."""
    entry = FormattedEntry(text, note="a")
    frame = pd.DataFrame(
        [[entry] * columns] * rows,
        index=pd.Index([f"{text}{row}" for row in range(rows)], name=text),
        columns=pd.Index([f"{text}{column}" for column in range(columns)], name=text),
    )
    tidy = pd.DataFrame({"name": [text], "value": [-1.5]})
    content = {"title": text, "legend": text, "notes": {"a": text}, **content}
    return FormattedTable(name="table-1", frame=frame, tidy=tidy, **content)


@pytest.mark.parametrize("write", [to_text, to_csv, to_markdown, to_latex])
def test_hostile_names_are_shown_escaped_in_every_format(write):
    written = write(table_of(HOSTILE))
    assert not set(written) & set("\x1b\x00\u202e\u2066\r")
    assert "x1b" in written
    assert "u202e" in written
    written.encode("utf-8")


def test_latex_commands_in_names_are_printed_not_run():
    latex = to_latex(table_of(HOSTILE))
    assert r"\input" not in latex
    assert r"\write18" not in latex
    assert r"\textbackslash{}input\{/etc/passwd\}" in latex
    assert r"\textbackslash{}write18\{rm -rf\}" in latex


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1"),
        *("\uff1d1", "\uff0b1", "\uff0d1", "\uff20SUM(A1)"),  # full-width = + - @
    ],
)
def test_csv_quotes_text_that_a_spreadsheet_would_run(text, read_csv):
    written = to_csv(table_of(text))
    (name,) = read_csv(io.StringIO(written))["name"]
    assert name == "'" + escape_controls(text)
    assert ",-1.5" in written


def test_a_table_wider_than_the_terminal_is_split_by_columns():
    table = table_of("0.123 ± 0.045", columns=6, rows=3)
    whole = to_text(table)
    assert max(map(len, whole.splitlines())) > 80
    assert to_text(table, width=200) == whole
    split = to_text(table, width=80)
    assert max(map(len, split.splitlines())) <= 80
    assert split.count("0.123 ± 0.045 [a]") == whole.count("0.123 ± 0.045 [a]") == 18
    # Every part repeats the names of the rows.
    assert len([line for line in split.splitlines() if line.startswith("0.123 ± 0.0450 ")]) == 2


def test_a_column_wider_than_the_terminal_stands_alone():
    text = to_text(table_of("x" * 50, columns=2), width=40)
    assert text.count("x" * 50 + "0 ") >= 2


def test_a_long_table_is_split_into_groups_of_rows_with_broken_lines():
    table = table_of("several words in a row", columns=3, rows=4, long=True)
    names = [("MNIST", "SC", "VAE", "2"), ("MNIST", "SC", "VAE", "4")]
    names += [("MNIST", "DB", "VAE", "2"), ("CelebA", "DB", "VAE", "2")]
    frame = table.frame.set_axis(
        pd.MultiIndex.from_tuples(names, names=["Dataset", "Metric", "Model", "L"])
    )
    table = dataclasses.replace(table, frame=frame, title="words " * 20)
    assert max(map(len, to_text(table).splitlines())) > 60
    lines = to_text(table, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if ", " in line] == ["MNIST, SC", "MNIST, DB", "CelebA, DB"]
    assert "\n".join(lines).count("[a]") == 12 + 1
    # Lines break between words.
    assert {"several", "words", "row"} <= set(" ".join(lines).split())


def test_footnotes_go_on_after_z():
    marks = list(footnote_letters(f"note {i}" for i in range(28)).values())
    assert marks[0] == "a"
    assert marks[25:] == ["z", "aa", "ab"]
