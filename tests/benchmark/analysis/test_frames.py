import json

import pandas as pd
import pytest

import hgmvae_bench as hb
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store

PROVENANCE = {
    "device": "cpu",
    "gpu": None,
    "cpu": "a processor",
    "python": "3.11.4",
    "packages": {"torch": "2.11.0", "hgmvae-bench": "0.1.0"},
    "code": {"commit": "abc", "dirty": False},
}


@pytest.fixture
def folder(tmp_path, tiny_grid):
    """A complete run, one with a missing metric, and a diverged one; a fourth is missing."""
    store = Store(tmp_path)
    store.add_grid(tiny_grid)
    contents = [
        ("vae", 0, "complete", {"sc": MetricValue(value=1 / 3, fingerprint={"n": 7}, seconds=0.5)}),
        ("vae", 1, "complete", {"sc": MetricValue(missing="no weights")}),
        ("wae-imq", 0, "diverged", {}),
    ]
    for model, seed, status, metrics in contents:
        store.add(
            Record.of(
                Run(tiny_grid.cell("digits", model, 2), seed, "d"),
                status=status,
                metrics=metrics,
                error="epoch 2" if status == "diverged" else None,
                history={"loss": [3.0, 2.0], "kl": [0.5, 0.25]},
                seconds={"training": 2.0, "scoring": 1.0},
                n_parameters=11,
                provenance=PROVENANCE,
            )
        )
    return tmp_path


def test_results_have_a_row_for_every_run_and_metric(folder):
    frame = hb.load_results(str(folder)).set_index(["model", "seed"])
    assert len(frame) == 3
    whole = frame.loc["vae", 0]
    assert whole["value"] == 1 / 3
    assert json.loads(whole["fingerprint"]) == {"n": 7}
    assert json.loads(whole["settings"])["training"]["train_images"] == 128
    assert (whole["seconds"], whole["seconds_training"], whole["metric_seconds"]) == (3, 2, 0.5)
    assert (whole["torch"], whole["commit"], whole["n_parameters"]) == ("2.11.0", "abc", 11)
    assert frame.loc["vae", 1]["missing"] == "no weights"
    diverged = frame.loc["wae-imq", 0]
    assert (diverged["status"], diverged["missing"], diverged["error"]) == (
        "diverged",
        "diverged",
        "epoch 2",
    )
    assert pd.isna(diverged["metric"])
    assert pd.isna(diverged["value"])
    assert frame["value"].dtype == float
    assert frame["gpu"].dtype == "string"


def test_metrics_added_later_are_among_the_results(folder):
    store = Store(folder)
    key, run = next((k, r) for k, r in store.runs().items() if r.record.seed == 1)
    added = ScoreRecord(
        key=key, record_sha256=run.sha256, metrics={"sc": MetricValue(value=0.5)}, provenance={}
    )
    store.add_scores(added)
    frame = hb.load_results(folder)
    assert frame.loc[frame["key"] == key, "value"].tolist() == [0.5]


def test_history_has_a_row_for_every_term_and_epoch(folder):
    frame = hb.load_history(folder)
    assert len(frame) == 3 * 2 * 2
    kl = frame[(frame["term"] == "kl") & (frame["model"] == "vae") & (frame["seed"] == 0)]
    assert kl[["epoch", "value"]].values.tolist() == [[1, 0.5], [2, 0.25]]


def test_tables_are_loaded_by_name(folder):
    table = hb.Results(folder).tables()["1"]
    assert table == hb.Results(folder).table("1")
    assert table.means.loc["SC↑", "VAE"] == 1 / 3
    assert pd.isna(table.means.loc["SC↑", "WAE-IMQ"])


def test_footnotes_count_the_runs_of_a_cell_with_other_settings(folder, tiny_text):
    wider = parse_grid(tiny_text.replace("width: 2", "width: 3"), "wider.yaml")
    table = hb.Results(folder, wider).table("1")
    assert {entry.model: entry.note for entry in table.entries} == {
        "vae": "2 × not run (2 with other settings)",
        "wae-imq": "2 × not run (1 with other settings)",
    }


def test_the_error_for_a_folder_without_records_names_it(tmp_path):
    with pytest.raises(StoreError, match=r"no records in .*nowhere"):
        hb.load_results(tmp_path / "nowhere")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_nothing"):
        _ = hb.load_nothing
