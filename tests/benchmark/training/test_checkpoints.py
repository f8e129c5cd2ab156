"""A training that is stopped and taken up again ends as if it had not been stopped."""

import json

import pytest
import torch
from safetensors import safe_open

from hgmvae_bench.execution.run import _seeded, execute_run
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import Checkpoint, TrainingState
from hgmvae_bench.utils.atomic_files import LocalFiles
from hgmvae_bench.utils.errors import StopRequestedError

CPU = torch.device("cpu")


def stop_after(epoch):
    def on_epoch(number, terms):
        if number == epoch:
            raise StopRequestedError

    return on_epoch


def outcome(record):
    metrics = {name: (m.value, m.fingerprint) for name, m in record.metrics.items()}
    return record.status, record.history, metrics


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
@pytest.mark.parametrize("stops", [[1], [2], [1, 2, 3]], ids=str)
def test_stopped_and_uninterrupted_runs_are_equal_to_the_bit(
    tiny_text, digits, tmp_path, model, settings, stops
):
    text = tiny_text.replace("epochs: 1,", "epochs: 4,").replace("[vae, wae-imq]", f"[{model}]")
    if settings:
        text = text.replace(
            "tables:", f"models: {{ {model}: {{ settings: {settings} }} }}\ntables:"
        )
    (cell,) = parse_grid(text, "tiny.yaml").cells
    run = Run(cell, 0, digits.digest)
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    whole = execute_run(run, digits, ["sc", "ssim"], RunContext(straight))
    assert whole.status == "complete", whole.error
    for epoch in stops:
        with pytest.raises(StopRequestedError):
            execute_run(run, digits, ["sc", "ssim"], RunContext(broken), on_epoch=stop_after(epoch))
        assert broken.runs() == {}
    told = []
    resumed = execute_run(
        run,
        digits,
        ["sc", "ssim"],
        RunContext(broken),
        on_epoch=lambda epoch, terms: told.append(epoch),
    )
    assert told == list(range(stops[-1] + 1, 5))
    assert resumed.provenance["resumed_after_epoch"] == stops[-1]
    assert outcome(resumed) == outcome(whole)
    weights = [s.artifact_folder(run.key) / "model.safetensors" for s in (straight, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert list((tmp_path / "broken" / "checkpoints").iterdir()) == []


def state(epoch=2):
    return TrainingState(epoch, {"loss": [2.5, 1.5]}, {"model.weight": torch.arange(3.0)})


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    Checkpoint(LocalFiles(tmp_path), "run").save(state())
    with safe_open(tmp_path / "checkpoints" / "run.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["history"]) == {"loss": [2.5, 1.5]}
        assert torch.equal(file.get_tensor("model.weight"), torch.arange(3.0))
    loaded = Checkpoint(LocalFiles(tmp_path), "run").load()
    assert (loaded.epoch, loaded.history) == (2, {"loss": [2.5, 1.5]})


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: b"x" * 99])
def test_a_damaged_checkpoint_counts_as_none(tmp_path, damage):
    checkpoint = Checkpoint(LocalFiles(tmp_path), "run")
    checkpoint.save(state())
    path = tmp_path / "checkpoints" / "run.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoint.load() is None


def test_a_checkpoint_of_another_torch_counts_as_none(tmp_path, monkeypatch):
    checkpoint = Checkpoint(LocalFiles(tmp_path), "run")
    checkpoint.save(state())
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert checkpoint.load() is None


def test_a_checkpoint_of_another_kind_of_device_counts_as_none(tmp_path):
    Checkpoint(LocalFiles(tmp_path), "run", "cuda").save(state())
    assert Checkpoint(LocalFiles(tmp_path), "run", "cpu").load() is None
    assert Checkpoint(LocalFiles(tmp_path), "run", "cuda").load() is not None


def test_a_run_keeps_checkpoints_of_the_device_that_trains_it(tiny_grid, digits, tmp_path):
    run = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    for device in (CPU, torch.device("meta")):
        seeded = _seeded(run, digits, RunContext(Store(tmp_path), device=device.type))
        assert seeded.checkpoint.device == device.type


def test_a_short_run_writes_no_checkpoint(tiny_grid, digits, tmp_path):
    run = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    execute_run(run, digits, ["sc"], RunContext(Store(tmp_path)))
    assert not (tmp_path / "checkpoints").exists()
