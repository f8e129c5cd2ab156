import re
import shutil
import subprocess

import pandas as pd
import pytest

import hgmvae_bench as hb
from hgmvae_bench.analysis.claims import ABLATION_CLAIMS, DISENTANGLEMENT_CLAIMS
from hgmvae_bench.analysis.export import export, formatted_comparison, formatted_tables
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.atomic_files import OutputError

NASTY = r"""50% & a_b <i> #1 $x$ {y} ~^\\ "q" [z] é β Σ | `c` \input{/etc/passwd} \write18{date}"""


def write(folder, grid, runs):
    tables = [build_table(grid, spec, runs) for spec in grid.spec.tables]
    values = pd.DataFrame({"key": pd.Series(["k"], dtype="string"), "value": [1 / 3]})
    return tables, export(formatted_tables(grid, tables), values, folder)


def compile_latex(folder):
    """Compile the document twice with pdflatex and return its log."""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "tables.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def paper_export(tmp_path_factory, published_runs):
    grid = load_grid("paper").select(seeds=5)
    folder = tmp_path_factory.mktemp("export")
    # Without runs of 3D Chairs, entries are dashes with a footnote.
    runs = [run for run in published_runs(grid, 0.02) if "3d-chairs" not in run.record.key]
    return folder, *write(folder, grid, runs)


def test_every_table_is_exported_in_every_format(paper_export):
    folder, _, files = paper_export
    names = [f"table-{i}" for i in range(1, 6)]
    names += [f"{name}-paper" for name in names] + ["claims"]
    expected = {f"{name}.{suffix}" for name in names for suffix in ("csv", "md", "tex", "txt")}
    assert {path.name for path in folder.iterdir()} == expected | {"tables.tex", "values.parquet"}
    assert {path.name for path in files} == {path.name for path in folder.iterdir()}


def test_exported_csv_has_full_precision(paper_export, read_csv):
    folder, tables, _ = paper_export
    for table in tables:
        read = read_csv(folder / f"table-{table.spec.name}.csv")
        read["note"] = read["note"].astype(object).fillna("")
        pd.testing.assert_frame_equal(read, table.values, check_dtype=False, check_exact=True)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_the_paper_tables_compile_and_fit_the_page(paper_export):
    folder, _, _ = paper_export
    log = compile_latex(folder)
    assert "Overfull" not in log
    assert "undefined" not in log
    pages = re.search(r"Output written on tables.pdf \((\d+) pages", log)
    assert pages is not None
    # Five tables, five comparisons of at least a page each, and the claims.
    assert int(pages[1]) >= 11
    if shutil.which("pdftotext"):
        text = subprocess.run(
            ["pdftotext", "-layout", "tables.pdf", "-"], cwd=folder, capture_output=True, text=True
        ).stdout
        assert "Clustering on MNIST" in text
        assert "n = 0 of 5: 5 × not run" in text


@pytest.mark.parametrize(
    ("table", "claims"),
    [
        ("2", {"best-classification", "both-best-classification"}),
        ("5", {"fisher-helps-generation"}),
    ],
)
def test_a_compared_table_of_the_paper_has_the_claims_about_it(published_runs, table, claims):
    grid = load_grid("paper").select(seeds=2)
    runs = published_runs(grid, 0.02)
    tables = [build_table(grid, spec, runs) for spec in grid.spec.tables]
    comparison, tested = formatted_comparison(grid, tables, table)
    assert comparison.name == f"table-{table}-paper"
    assert set(tested.tidy["claim"]) == claims


def test_a_compared_table_of_another_grid_has_its_claims_and_those_of_the_paper():
    grid = load_grid("ablations")
    tables = [build_table(grid, spec, []) for spec in grid.spec.tables]
    _, tested = formatted_comparison(grid, tables, "1")
    own = {claim.name for claim in ABLATION_CLAIMS}
    of_paper = {"both-best-classification", "fisher-helps-clustering"}
    assert set(tested.tidy["claim"]) == own | of_paper


def test_a_long_table_repeats_all_names_in_every_group_of_rows(paper_export):
    folder, _, _ = paper_export
    body = (folder / "table-1-paper.tex").read_text().split("\\endlastfoot\n")[1]
    lines = body.split("\\end{longtable}")[0].splitlines()
    names = [[name.strip() for name in line.split("&")[:4]] for line in lines[:8]]
    assert names[0] == ["MNIST", "SC$\\uparrow$", "GMVAE", "2"]
    assert names[1:7] == [["", "", "", str(latent_dim)] for latent_dim in (4, 8, 16, 32, 64, 128)]
    assert names[7] == ["MNIST", "SC$\\uparrow$", "HGMVAE-G", "2"]
    # LaTeX does not break the page after a row that ends with a star.
    assert [line.endswith(r"\\*") for line in lines[:8]] == [*[True] * 6, False, True]
    assert lines[8].startswith(" & ")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_names_with_latex_characters_and_commands_compile(tmp_path, tiny_text):
    variant = {"model": "vae", "title": NASTY}
    text = tiny_text.replace("[vae, wae-imq]", "[odd, wae-imq]").replace(
        "tables:", f"models: {{ odd: {variant!r} }}\ntables:", 1
    )
    grid = parse_grid(text.replace("Clustering", "A & B_c 5 %"), "g.yaml")
    run = Run(grid.cell("digits", "odd", 2), 0, "d")
    record = Record.of(run, status="complete", metrics={"sc": MetricValue(missing=NASTY)})
    store = Store(tmp_path / "r")
    store.add(record)
    write(tmp_path / "out", grid, list(store.runs().values()))
    compile_latex(tmp_path / "out")


def test_exported_parquet_has_every_value(tmp_path, tiny_grid):
    store = Store(tmp_path / "r")
    store.add_grid(tiny_grid)
    for seed, value in enumerate((1 / 3, 0.1)):
        run = Run(tiny_grid.cell("digits", "vae", 2), seed, "d")
        metrics = {"sc": MetricValue(value=value), "accuracy": MetricValue(missing="no labels")}
        store.add(Record.of(run, status="complete", metrics=metrics, seconds={"training": 1.5}))
    run = Run(tiny_grid.cell("digits", "wae-imq", 2), 0, "d")
    store.add(Record.of(run, status="failed", error="boom"))
    values = hb.load_results(store.root)
    export([], values, tmp_path / "out")
    read = pd.read_parquet(tmp_path / "out/values.parquet")
    pd.testing.assert_frame_equal(read, values, check_exact=True)
    assert set(read["value"].dropna()) == {1 / 3, 0.1}
    assert read["status"].tolist().count("failed") == 1


def test_a_grid_without_published_values_gets_no_comparison(tmp_path, tiny_grid):
    write(tmp_path, tiny_grid, [])
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"table-1", "tables", "values"}


def test_a_grid_beyond_the_paper_is_exported_with_its_claims(tmp_path):
    write(tmp_path, load_grid("disentanglement"), [])
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"table-1", "claims", "tables", "values"}
    text = (tmp_path / "claims.md").read_text()
    assert f"{DISENTANGLEMENT_CLAIMS[0].statement} (most of 4)" in text


def test_the_error_of_an_unwritable_folder_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out/.*: cannot be written"):
        export([], pd.DataFrame({"value": [1.0]}), tmp_path / "file" / "out")
