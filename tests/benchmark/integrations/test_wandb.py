"""Weights & Biases in offline mode; the files are decoded with its protocol buffers."""

import json
import struct
import time

import pytest

from hgmvae_bench.execution.tasks import EpochEnded, Finished, Started
from hgmvae_bench.execution.tracking import TrackingContext, tracking
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.schema import MetricValue, Record

pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
pytestmark = pytest.mark.slow

BLOCK, FULL, LAST = 32768, 1, 4


def log_entries(content):
    """Entries of a LevelDB log, W&B's file format: checksum, length and type before each piece."""
    position, entry = 7, b""
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # padding at the end of a block
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if position + 7 + length > len(content):  # still being written
            return
        entry += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            yield entry
            entry = b""


def read_offline(path):
    """Configuration, history and summary of the run in a ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record as Entry

    config, history, summary, exit_code = {}, [], {}, None
    for data in log_entries(path.read_bytes()):
        entry = Entry()
        entry.ParseFromString(data)
        for update in entry.run.config.update:
            config[update.key] = json.loads(update.value_json)
        if entry.HasField("history"):
            items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in entry.history.item}
            history.append(items)
        for update in entry.summary.update:
            summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        if entry.HasField("exit"):
            exit_code = entry.exit.exit_code
    return config, history, summary, exit_code


def read_finished(path, seconds=30):
    """What `read_offline` returns, once the service of W&B has written the end of the run."""
    end = time.monotonic() + seconds
    while (content := read_offline(path))[-1] is None and time.monotonic() < end:
        time.sleep(0.1)
    return content


def test_offline_runs_have_settings_losses_metrics_and_status(tmp_path, tiny_grid, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    runs = [Run(next(iter(tiny_grid.cells)), seed, "digest") for seed in range(2)]
    warnings = []
    with tracking(["wandb"], TrackingContext("tiny", tmp_path), warnings.append) as [reporter]:
        for run in runs:  # open at the same time, as those of two workers are
            reporter.on_event(Started(run))
        for epoch, loss in ((1, 2.0), (2, 1.5)):
            for run in runs:
                reporter.on_event(EpochEnded(run, epoch, {"loss": loss + run.seed}))
        metrics = {"sc": MetricValue(value=0.25), "fid": MetricValue(missing="no weights")}
        complete = Record.of(runs[0], status="complete", metrics=metrics)
        failed = Record.of(runs[1], status="failed", error="ValueError: no")
        reporter.on_event(Finished(runs[0], complete))
        reporter.on_event(Finished(runs[1], failed))
    assert warnings == []
    found = {}
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        config, history, summary, exit_code = read_finished(path)
        found[config["seed"]] = (config, history, summary, exit_code)
    assert found.keys() == {0, 1}
    config, history, summary, exit_code = found[0]
    assert config["model.name"] == runs[0].cell.model
    losses = [items["training/loss"] for items in history if "training/loss" in items]
    assert losses == [2.0, 1.5]
    assert summary["metrics/sc"] == 0.25
    assert summary["missing/fid"] == "no weights"
    assert (summary["status"], exit_code) == ("complete", 0)
    _, history, summary, exit_code = found[1]
    assert [i["training/loss"] for i in history if "training/loss" in i] == [3.0, 2.5]
    assert (summary["status"], exit_code) == ("failed", 1)
