"""Two results folders side by side."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from hgmvae_bench.analysis.folder_comparison import COLUMNS, FolderComparisonError, compare_folders
from hgmvae_bench.analysis.render import WRITERS, FormattedEntry
from hgmvae_bench.cli import app
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store


@pytest.fixture
def add_runs(tiny_grid):
    """Adds complete runs of one cell to a folder, with the given values of ``sc``."""

    def add(folder, values, *, model="vae", metric="sc", n_images=10, data="d", **training):
        cell = tiny_grid.cell("digits", model, 2)
        cell = replace(cell, training=cell.training.model_copy(update=training))
        for seed, value in enumerate(values):
            metrics = {metric: MetricValue(value=value, fingerprint={"n_images": n_images})}
            run = Run(cell, seed, data)
            Store(folder).add(Record.of(run, status="complete", metrics=metrics))

    return add


def test_means_and_tests_agree_with_scipy_and_holm(tmp_path, add_runs):
    rng = np.random.default_rng(0)
    samples = {model: rng.normal(size=(2, 4)) for model in ("vae", "wae-imq")}
    samples["vae"][1] += 5
    for model, (first, second) in samples.items():
        add_runs(tmp_path / "a", first, model=model)
        add_runs(tmp_path / "b", second, model=model)
    compared = compare_folders(tmp_path / "a", tmp_path / "b")
    rows = compared.values.set_index("model")
    p = {m: stats.ttest_ind(*s, equal_var=False).pvalue for m, s in samples.items()}
    for model, (first, second) in samples.items():
        assert rows.loc[model, "difference"] == pytest.approx(second.mean() - first.mean())
        assert rows.loc[model, "std_first"] == pytest.approx(first.std(ddof=1))
        assert rows.loc[model, "p"] == pytest.approx(p[model])
    assert rows.loc["vae", "p_holm"] == pytest.approx(2 * p["vae"])
    assert rows["outcome"].to_dict() == {"vae": "better", "wae-imq": "not significant"}


def test_the_direction_of_a_metric_decides_what_is_better(tmp_path, add_runs):
    add_runs(tmp_path / "a", [1.0, 1.1, 0.9], metric="db")
    add_runs(tmp_path / "b", [3.0, 3.1, 2.9], metric="db")
    assert compare_folders(tmp_path / "a", tmp_path / "b").counts == {"worse": 1}


def test_neither_direction_of_a_neutral_metric_is_better(tmp_path, add_runs):
    add_runs(tmp_path / "a", [1.0, 1.1, 0.9], metric="rate")
    add_runs(tmp_path / "b", [3.0, 3.1, 2.9], metric="rate")
    assert compare_folders(tmp_path / "a", tmp_path / "b").counts == {"different": 1}


def test_equal_values_are_equal_and_single_seeds_are_not_tested(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.5, 0.25])
    add_runs(tmp_path / "b", [0.5, 0.25])
    add_runs(tmp_path / "a", [0.5], model="wae-imq")
    add_runs(tmp_path / "b", [0.75], model="wae-imq")
    outcomes = compare_folders(tmp_path / "a", tmp_path / "b").values["outcome"].tolist()
    assert outcomes == ["equal", "untested"]


def test_cells_that_differ_in_a_setting_are_compared_with_a_note(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.5, 0.25], precision="float32")
    add_runs(tmp_path / "b", [0.5, 0.3], precision="bf16")
    compared = compare_folders(tmp_path / "a", tmp_path / "b")
    [row] = compared.values.to_dict("records")
    assert row["note"] == "training.precision: float32, bf16"
    assert row["outcome"] == "not significant"
    assert compared.table.notes == {"a": row["note"]}
    assert compared.table.frame["outcome"].tolist() == [FormattedEntry("not significant", note="a")]


@pytest.mark.parametrize("difference", [{"n_images": 20}, {"data": "other"}])
def test_values_computed_differently_are_not_compared(tmp_path, add_runs, difference):
    add_runs(tmp_path / "a", [0.5, 0.25])
    add_runs(tmp_path / "b", [5.0, 2.5], **difference)
    [row] = compare_folders(tmp_path / "a", tmp_path / "b").values.to_dict("records")
    assert row["outcome"] == "not comparable"
    assert np.isnan(row["p_holm"])


def test_what_only_one_folder_has_is_listed(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.5, 0.25])
    add_runs(tmp_path / "a", [0.5], model="wae-imq")
    add_runs(tmp_path / "b", [0.5, 0.25], metric="ch")
    missing = compare_folders(tmp_path / "a", tmp_path / "b").missing
    assert {line.rpartition(": ")[2].partition(" only")[0] for line in missing} == {
        "only in " + str(tmp_path / "a"),
        "sc",
        "ch",
    }


def test_every_format_has_the_means_and_the_outcome(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.25, 0.5])
    add_runs(tmp_path / "b", [0.75, 1.0])
    table = compare_folders(tmp_path / "a", tmp_path / "b").table
    for name, (_, write) in WRITERS.items():
        text = write(table)
        assert "0.375" in text, name
        assert "not significant" in text, name


def test_cells_without_a_common_metric_give_a_table_without_rows(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.5])
    add_runs(tmp_path / "b", [0.5], metric="db")
    table = compare_folders(tmp_path / "a", tmp_path / "b").table
    for name in ("text", "markdown", "latex"):
        text = WRITERS[name][1](table)
        assert "digits, vae, L = 2: db only in" in text.replace("\n", " "), name
        assert "Empty" not in text, name
    assert WRITERS["csv"][1](table).splitlines() == [",".join(COLUMNS)]
    printed = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert printed.stdout.endswith("\nno metric of a cell in common\n")


def test_folders_without_a_common_cell_are_refused(tmp_path, add_runs):
    add_runs(tmp_path / "a", [0.5])
    add_runs(tmp_path / "b", [0.5], model="wae-imq")
    with pytest.raises(FolderComparisonError, match=r"no cell in common.*vae.*wae-imq"):
        compare_folders(tmp_path / "a", tmp_path / "b")
