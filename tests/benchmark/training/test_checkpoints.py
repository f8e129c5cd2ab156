"""Checkpoint files, and resumed trainings that equal uninterrupted ones."""

import json
from functools import cache

import pytest
import torch
from safetensors import safe_open

from hgmvae_bench.execution.run import build_seeded_model, execute_run
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import Checkpoint, TrainingState
from hgmvae_bench.utils.atomic_files import LocalFiles
from hgmvae_bench.utils.errors import StopRequestedError

CPU = torch.device("cpu")
METRICS = ["sc", "ssim"]


def stop_after(epoch):
    def on_epoch(number, terms):
        if number == epoch:
            raise StopRequestedError

    return on_epoch


def run_outcome(store, key, record):
    """What a resumed run must have in common with an uninterrupted one."""
    metrics = {name: (m.value, m.fingerprint) for name, m in record.metrics.items()}
    weights = (store.artifact_folder(key) / "model.safetensors").read_bytes()
    return record.status, record.history, metrics, weights


@pytest.fixture(scope="module")
def make_run(tiny_text, digits):
    """Create a run of four epochs with a model and, as YAML, its settings."""

    def make(model, settings):
        text = tiny_text.replace("epochs: 1,", "epochs: 4,").replace("[vae, wae-imq]", f"[{model}]")
        if settings:
            models = f"models: {{ {model}: {{ settings: {settings} }} }}"
            text = text.replace("tables:", f"{models}\ntables:")
        (cell,) = parse_grid(text, "tiny.yaml").cells
        return Run(cell, 0, digits.digest)

    return make


@pytest.fixture(scope="module")
def uninterrupted_outcome(make_run, digits, tmp_path_factory):
    """Outcome of a run that is never stopped, computed once per model."""

    @cache
    def outcome(model, settings):
        store, run = Store(tmp_path_factory.mktemp("uninterrupted")), make_run(model, settings)
        record = execute_run(run, digits, METRICS, RunContext(store))
        assert record.status == "complete", record.error
        return run_outcome(store, run.key, record)

    return outcome


@pytest.mark.parametrize("stops", [[2], [1, 2, 3]], ids=str)
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("vae", ""),
        ("swae", ""),
        ("factor-vae", ""),
        ("vade", "{ pretrain_epochs: 2 }"),
        ("hgmvae-u", "{ warmup_epochs: 2, fisher_delay: 0 }"),
    ],
)
def test_resumed_and_uninterrupted_runs_are_bitwise_equal(
    make_run, uninterrupted_outcome, digits, tmp_path, model, settings, stops
):
    store, run = Store(tmp_path), make_run(model, settings)
    for epoch in stops:
        with pytest.raises(StopRequestedError):
            execute_run(run, digits, METRICS, RunContext(store), on_epoch=stop_after(epoch))
        assert store.runs() == {}
    epochs = []
    record = execute_run(
        run,
        digits,
        METRICS,
        RunContext(store),
        on_epoch=lambda epoch, terms: epochs.append(epoch),
    )
    assert epochs == list(range(stops[-1] + 1, 5))
    assert record.provenance["resumed_after_epoch"] == stops[-1]
    assert run_outcome(store, run.key, record) == uninterrupted_outcome(model, settings)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def state():
    return TrainingState(2, {"loss": [2.5, 1.5]}, {"model.weight": torch.arange(3.0)})


def test_a_checkpoint_is_a_safetensors_file_with_json_metadata(tmp_path):
    Checkpoint(LocalFiles(tmp_path), "run").save(state())
    with safe_open(tmp_path / "checkpoints" / "run.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["history"]) == {"loss": [2.5, 1.5]}
        assert torch.equal(file.get_tensor("model.weight"), torch.arange(3.0))
    loaded = Checkpoint(LocalFiles(tmp_path), "run").load()
    assert (loaded.epoch, loaded.history) == (2, {"loss": [2.5, 1.5]})


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: b"x" * 99])
def test_a_damaged_checkpoint_is_ignored_with_a_warning(tmp_path, damage, caplog):
    checkpoint = Checkpoint(LocalFiles(tmp_path), "run")
    checkpoint.save(state())
    path = tmp_path / "checkpoints" / "run.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoint.load() is None
    assert "run: the checkpoint cannot be used, so the training restarts" in caplog.text


def test_a_missing_checkpoint_is_no_reason_to_warn(tmp_path, caplog):
    assert Checkpoint(LocalFiles(tmp_path), "run").load() is None
    assert caplog.text == ""


def test_a_checkpoint_of_another_torch_version_is_ignored(tmp_path, monkeypatch, caplog):
    checkpoint = Checkpoint(LocalFiles(tmp_path), "run")
    checkpoint.save(state())
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    assert checkpoint.load() is None
    assert "'2.0.0'" in caplog.text


def test_a_checkpoint_of_another_device_type_is_ignored(tmp_path):
    Checkpoint(LocalFiles(tmp_path), "run", "cuda").save(state())
    assert Checkpoint(LocalFiles(tmp_path), "run", "cpu").load() is None
    assert Checkpoint(LocalFiles(tmp_path), "run", "cuda").load() is not None


def test_a_run_stores_its_device_type_in_the_checkpoint(tiny_grid, digits, tmp_path):
    run = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    for device in (CPU, torch.device("meta")):
        seeded = build_seeded_model(run, digits, RunContext(Store(tmp_path), device=device.type))
        assert seeded.checkpoint.device == device.type


def test_a_training_shorter_than_the_interval_writes_no_checkpoint(tiny_grid, digits, tmp_path):
    run = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    execute_run(run, digits, ["sc"], RunContext(Store(tmp_path)))
    assert not (tmp_path / "checkpoints").exists()
