"""Records that are intact files but not valid: edited by a program that also renewed their hash."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from hgmvae_bench.analysis.frames import load_results
from hgmvae_bench.cli import app
from hgmvae_bench.execution.results import Results
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.merge import merge
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import (
    ControlRecord,
    MetricValue,
    Record,
    ScoreRecord,
    StageCost,
)
from hgmvae_bench.storage.store import Store

DIGEST = "d" * 64


def edit(path, change):
    """Change the content of a record file and renew its hash."""
    content = json.loads(path.read_bytes())["content"]
    change(content)
    body = json.dumps(content, indent=1).encode()
    sha256 = hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(b'{"sha256": "%s", "content":\n%s\n}\n' % (sha256, body))


def setting(*keys, to):
    """A change of one entry of a nested content."""

    def change(content):
        *outer, last = keys
        for key in outer:
            content = content[key]
        if to is KeyError:
            del content[last]
        else:
            content[last] = to

    return change


@pytest.fixture
def store(tiny_grid, tmp_path):
    """A folder with the tiny grid's four runs and two controls."""
    store = Store(tmp_path / "results")
    store.add_grid(tiny_grid)
    for cell in tiny_grid.cells:
        for seed in range(2):
            values = {name: MetricValue(value=0.5 + seed) for name in ("sc", "accuracy")}
            record = Record.of(
                Run(cell, seed, DIGEST),
                status="complete",
                metrics=values,
                history={"loss": [2.0, 1.5]},
                seconds={"training": 1.5},
                provenance={"packages": {"torch": "2.11"}, "stages": {"training": {}}},
            )
            store.add(record)
    for control, dims in (("mean-image", None), ("pca", cell.latent_dim)):
        store.add_control(
            ControlRecord(
                key=f"digits_{control}{f'_L{dims}' if dims else ''}_0",
                control=control,
                title=control,
                dataset="digits",
                image_size=32,
                train_images=cell.training.train_images,
                data_digest=DIGEST,
                latent_dim=dims,
                comparable=True,
                metrics={"sc": MetricValue(value=0.25)},
            )
        )
    return store


INVALID_RECORDS = {
    "key": setting("key", to="a\0b"),
    "key with a separator": setting("key", to="../run"),
    "seed": setting("seed", to=-1),
    "status": setting("status", to="computer"),
    "settings.dataset": setting("settings", "dataset", to=KeyError),
    "settings.latent_dim": setting("settings", "latent_dim", to=0),
    "metrics.sc": setting("metrics", "sc", "value", to=None),
    "metrics.sc.value": setting("metrics", "sc", "value", to=float("nan")),
    "history.loss": setting("history", "loss", to=[float("inf")]),
    "provenance.packages": setting("provenance", "packages", to="torch"),
    "provenance.stages": setting("provenance", "stages", "training", to={"peak_bytes": "many"}),
    "finished_at": setting("finished_at", to="2026-01-01T00:00:00"),
}


@pytest.mark.parametrize("field", INVALID_RECORDS)
def test_an_invalid_record_costs_only_its_own_run(store, caplog, field):
    path = sorted((store.root / "records").iterdir())[0]
    edit(path, INVALID_RECORDS[field])
    with pytest.raises(StoreError, match=path.name) as caught:
        store.runs()
    assert field.split()[0].split(".")[0] in str(caught.value)
    assert path.stem not in store.runs(on_invalid="warn")
    assert len(store.runs(on_invalid="warn")) == 3
    assert path.name in caplog.text
    assert load_results(store.root)["key"].nunique() == 3
    assert Results(store.root).table("1").values["n"].sum() > 0
    assert [moved.name for moved in store.repair()] == [path.name]
    assert len(store.runs()) == 3


INVALID_CONTROLS = {
    "control": setting("control", to="pca"),
    "unknown control": setting("control", to="wishes"),
    "latent_dim": setting("latent_dim", to=None),
    "latent_dim of 0": setting("latent_dim", to=0),
    "key": setting("key", to="digits\0_pca_L4_0"),
    "another key": setting("key", to="digits_pca_L4_1"),
    "metrics": setting("metrics", "sc", "value", to=float("nan")),
}


@pytest.mark.parametrize("field", INVALID_CONTROLS)
def test_an_invalid_control_costs_only_itself(store, caplog, tmp_path, field):
    name = "mean-image" if "control" in field else "pca"
    (path,) = (store.root / "controls").glob(f"*{name}*")
    edit(path, INVALID_CONTROLS[field])
    with pytest.raises(StoreError, match=path.name):
        store.controls()
    (control,) = store.controls(on_invalid="warn").values()
    assert control.control == ("pca" if name == "mean-image" else "mean-image")
    assert path.name in caplog.text
    with pytest.raises(StoreError, match=path.name):
        merge(store.root, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert [moved.name for moved in store.repair()] == [path.name]
    assert len(store.controls()) == 1


def test_table_export_and_report_skip_an_invalid_control_and_name_it(store, caplog, tmp_path):
    (path,) = (store.root / "controls").glob("*mean-image*")
    edit(path, setting("control", to="pca"))
    for command in (
        ["table", "1", "--controls"],
        ["export", "--controls", "--output", tmp_path / "tables"],
        ["report", "--figures", "none", "--output", tmp_path / "report.html"],
    ):
        caplog.clear()
        arguments = [*map(str, command), "--results", str(store.root)]
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output
        assert path.name in caplog.text
        assert "run --repair" in caplog.text


def test_a_run_is_skipped_if_its_newest_record_is_invalid(store):
    key, run = next(iter(store.runs().items()))
    store.add(run.record.model_copy(update={"status": "failed", "error": "why"}))
    assert store.runs()[key].record.status == "failed"
    edit(store.root / "records" / f"{key}.retry-1.json", setting("seed", to=None))
    assert key not in store.runs(on_invalid="warn")


def test_an_invalid_score_record_costs_only_its_metrics(store):
    key, run = next(iter(store.runs().items()))
    score = ScoreRecord(key=key, record_sha256=run.sha256, metrics={"nmi": MetricValue(value=0.75)})
    store.add_scores(score)
    assert store.runs()[key].metrics["nmi"].value == 0.75
    edit(store.root / "records" / f"{key}.scores-1.json", setting("metrics", to=None))
    assert dict(store.runs(on_invalid="warn")[key].metrics) == run.metrics


def test_repair_leaves_a_record_with_fields_of_a_newer_version(store):
    path = sorted((store.root / "records").iterdir())[0]
    edit(path, setting("new_field", to=1))
    with pytest.raises(StoreError, match="new_field"):
        store.runs()
    assert store.repair() == []


def test_stage_costs_are_a_typed_view_of_the_provenance(store):
    record = next(iter(store.runs().values())).record
    stages = {
        "training": {"seconds": 2.5, "peak_gpu_bytes": 7, "together": 5},
        "scoring": {"seconds": 1.0, "peak_bytes": 9, "unknown": 0.5},
    }
    provenance = {"stages": stages, "gpu_bytes": 80}
    measured = Record.model_validate({**record.model_dump(), "provenance": provenance})
    assert measured.gpu_bytes == 80
    assert measured.stage_costs["training"].joint_seeds == 5
    assert measured.stage_costs["scoring"] == StageCost(seconds=1, peak_bytes=9)
    assert record.stage_costs == {"training": StageCost()}
    assert record.gpu_bytes is None
    # The record keeps the provenance as it was given.
    assert json.loads(measured.model_dump_json())["provenance"] == provenance
