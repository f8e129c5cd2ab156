"""A full disk in each stage: nothing half-written stays, the message names the place."""

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hgmvae_bench.analysis.export import export
from hgmvae_bench.analysis.frames import load_results
from hgmvae_bench.analysis.regression.baseline import Baseline, BaselineCell, save_baseline
from hgmvae_bench.cli.common import write_tables
from hgmvae_bench.evaluation.metrics import classifier, features
from hgmvae_bench.execution.ray.mailbox import Mailbox
from hgmvae_bench.execution.results import Results
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.storage.merge import merge
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.remote import RemoteError, RemoteResults
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import Checkpoint, TrainingState
from hgmvae_bench.utils.atomic_files import OutputError, write_output


@pytest.fixture
def full_disk(monkeypatch):
    """Function that fills the disk, so that no data can be flushed, and frees it again."""

    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(full):
        if full:
            monkeypatch.setattr(os, "fsync", refuse)
        else:
            monkeypatch.undo()

    return fill


@pytest.fixture
def record(tiny_grid):
    cell = next(iter(tiny_grid.cells))
    metrics = {name: MetricValue(value=0.5) for name in ("sc", "accuracy")}
    return Record.of(Run(cell, 0, "d"), status="complete", metrics=metrics)


@pytest.fixture
def control():
    identity = {"dataset": "digits", "image_size": 32, "train_images": 128, "data_digest": "d"}
    return ControlRecord(
        key="digits_mean-image_0123456789abcdef",
        title="Mean image",
        comparable=True,
        control="mean-image",
        latent_dim=None,
        metrics={"sc": MetricValue(value=0.5)},
        **identity,
    )


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_record_and_its_artifacts_are_written_completely_or_not_at_all(
    full_disk, record, tmp_path
):
    store = Store(tmp_path)
    full_disk(True)
    with pytest.raises(StoreError, match=rf"{record.key}.*No space left on device"):
        store.add(record, artifacts={"weights": b"w"})
    assert store.runs() == {}
    assert not [name for name in files(tmp_path) if "tmp-" in name or name.endswith(".json")]
    full_disk(False)
    assert store.add(record, artifacts={"weights": b"w"})
    assert list(store.runs()) == [record.key]
    assert (store.artifact_folder(record.key) / "weights").read_bytes() == b"w"


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(full_disk, tmp_path, caplog):
    checkpoint = Checkpoint(Store(tmp_path).files, "key")
    checkpoint.save(TrainingState(1, {"loss": [2.0]}, {"w": torch.ones(2)}))
    before = files(tmp_path)
    full_disk(True)
    checkpoint.save(TrainingState(2, {"loss": [2.0, 1.0]}, {"w": torch.zeros(2)}))
    assert files(tmp_path) == before
    assert "key: no checkpoint after epoch 2" in caplog.text
    assert "No space left on device" in caplog.text
    full_disk(False)
    assert checkpoint.load().epoch == 1


@pytest.fixture
def results(tiny_grid, record, tmp_path):
    store = Store(tmp_path / "r")
    store.add_grid(tiny_grid)
    store.add(record)
    return Results(tmp_path / "r", "tiny")


def test_a_grid_file_that_does_not_fit_leaves_the_earlier_one(full_disk, results, tiny_grid):
    before = files(results.path)
    full_disk(True)
    with pytest.raises(StoreError, match=r"tiny\.yaml: cannot be written: No space left"):
        Store(results.path).add_grid(tiny_grid)
    assert files(results.path) == before


def test_tables_that_do_not_fit_leave_no_part(full_disk, results):
    before = files(results.path)
    full_disk(True)
    with pytest.raises(OutputError, match=r"table-1.*: cannot be written: No space left"):
        write_tables(results)
    assert files(results.path) == before
    full_disk(False)
    write_tables(results)
    assert (results.path / "tables" / "tiny" / "table-1.csv").stat().st_size > 0


def test_exports_reports_and_baselines_that_do_not_fit_leave_no_part(
    full_disk, results, record, tmp_path
):
    tables, values = (
        [table.formatted for table in results.tables().values()],
        load_results(results.path),
    )
    cell = BaselineCell.model_construct(seeds=[0, 1], measures={}, fingerprints={})
    baseline = Baseline.model_construct(grid="tiny", provenance=[], cells=[cell])
    full_disk(True)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device"):
        export(tables, values, tmp_path / "out")
    with pytest.raises(OutputError, match=r"report\.html: cannot be written: No space left"):
        write_output(tmp_path / "out" / "report.html", b"page")
    with pytest.raises(OutputError, match=r"b\.json: cannot be written: No space left"):
        save_baseline(baseline, tmp_path / "out" / "b.json")
    assert files(tmp_path / "out") == {}


def test_a_classifier_that_does_not_fit_costs_its_metrics_until_there_is_space(
    full_disk, digits, tmp_path, monkeypatch
):
    def train():
        monkeypatch.setattr(classifier, "STEPS", 2)
        return classifier.trained_classifier(digits, "digits", tmp_path, torch.device("cpu"))

    full_disk(True)
    with pytest.raises(MetricMissingError, match=r"of digits cannot be stored.*No space left"):
        train()
    assert [name for name in files(tmp_path) if not name.endswith(".lock")] == []
    full_disk(False)
    path, description = train()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == description.weights_sha256


def test_features_that_do_not_fit_are_used_without_being_cached(full_disk, digits, tmp_path):
    extract = features.FeatureExtractor(
        "pixels", {}, lambda images: (images.flatten(1).float(),), None, torch.device("cpu")
    )
    images = digits.test_images[:5]
    full_disk(True)
    found = features.cached_features(extract, images, tmp_path / "features")
    assert torch.equal(found, images.flatten(1).float())
    assert [name for name in files(tmp_path) if not name.endswith(".lock")] == []


def test_a_control_and_a_lease_that_do_not_fit_leave_no_part(full_disk, control, tmp_path):
    store = Store(tmp_path)
    full_disk(True)
    with pytest.raises(StoreError, match=rf"{control.key}.*No space left on device"):
        store.add_control(control)
    with pytest.raises(OSError, match="No space left on device"):
        Leases(store.files, store.owner).acquire("run")
    assert files(tmp_path) == {}


def test_a_local_copy_that_does_not_fit_is_named_and_leaves_no_part(full_disk, results, tmp_path):
    key = next(iter(Store(results.path).runs()))
    Store(results.path).write_artifacts(key, {"weights": b"w"})
    remote = RemoteResults(f"file://{results.path}", tmp_path / "copy")
    full_disk(True)
    with pytest.raises(RemoteError, match=r"copy/remote\.url: cannot be written: No space left"):
        remote.pull()
    with pytest.raises(RemoteError, match=r"copy/artifacts/.*weights: cannot be written: No sp"):
        remote.fetch_artifacts(key)
    assert files(tmp_path / "copy") == {}
    full_disk(False)
    remote.pull()
    assert list(Store(tmp_path / "copy").runs()) == [key]


@pytest.mark.parametrize("options", [(), ("--plugin",)])
def test_a_template_that_does_not_fit_leaves_no_part(full_disk, cli, tmp_path, options):
    path = tmp_path / ("free-bits" if options else "grid.yaml")
    full_disk(True)
    outcome = cli("init", path, *options)
    assert outcome.exit_status == 2
    assert "cannot be written: No space left on device" in outcome.stderr
    assert files(tmp_path) == {}
    full_disk(False)
    assert cli("init", path, *options).exit_status == 0


def test_a_checkpoint_of_a_ray_node_that_does_not_fit_leaves_no_part(full_disk, tmp_path):
    mailbox = Mailbox(tmp_path, "owner")
    full_disk(True)
    with pytest.raises(OSError, match="No space left on device"):
        mailbox.write_file("checkpoints/key.safetensors", b"c")
    assert files(tmp_path) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_of_a_ray_node_that_does_not_fit_is_named(tmp_path, tiny_grid):
    driver = pytest.importorskip("hgmvae_bench.execution.ray.driver", exc_type=ImportError)
    store, run = Store(tmp_path), Run(next(iter(tiny_grid.cells)), 0, "d")
    store.log_path(run.key).parent.mkdir()
    store.log_path(run.key).symlink_to("/dev/full")
    context = SimpleNamespace(context=RunContext(store))
    with pytest.raises(StoreError, match=rf"{run.key}\.log: cannot be written: No space left"):
        driver._Driver.append_log(context, run, b"output")


def test_a_merge_that_does_not_fit_can_be_repeated(full_disk, results, record, tmp_path):
    log = Store(results.path).log_path(record.key)
    log.parent.mkdir()
    log.write_text("output of the run")
    target = tmp_path / "target"
    full_disk(True)
    with pytest.raises(StoreError, match="No space left on device"):
        merge(results.path, target)
    assert not [name for name in files(target) if name.startswith(("records", "logs", "artifacts"))]
    full_disk(False)
    assert merge(results.path, target).copied == [record.key]
    assert Store(target).log_path(record.key).read_text() == "output of the run"
