"""Whole runs through the driver and its worker processes."""

import dataclasses
import os
import random
import shutil
import signal
import threading
import time

import pytest
import yaml

from hgmvae_bench.execution import build_model
from hgmvae_bench.executor import EpochEnded, Finished, Started
from hgmvae_bench.grid import parse_grid
from hgmvae_bench.records import Record
from hgmvae_bench.runner import (
    RunError,
    check_models,
    load_data,
    make_evaluation_plan,
    make_plan,
    run_plan,
)
from hgmvae_bench.store import Store


class Recorder:
    """Keeps what it is told, and calls ``react`` with every event."""

    def __init__(self, react=lambda event: None):
        self.plan, self.events, self.react = None, [], react

    def planned(self, plan):
        self.plan = plan

    def happened(self, event):
        self.events.append(event)
        self.react(event)

    def count(self, kind):
        return sum(isinstance(event, kind) for event in self.events)


def run(grid, root, recorder=None, *, workers=2, retry_failed=False):
    store, recorder = Store(root), recorder or Recorder()
    data = load_data(grid, root)
    plan = make_plan(grid, data, store.runs(), retry_failed=retry_failed)
    check_models(plan, data)
    complete = run_plan(
        plan, store, data_root=root, device="cpu", workers=workers, reporter=recorder
    )
    return complete, recorder


def evaluate(grid, root, metrics):
    store, recorder = Store(root), Recorder()
    plan = make_evaluation_plan(grid, load_data(grid, root), store.runs(), metrics)
    run_plan(plan, store, data_root=root, device="cpu", workers=2, reporter=recorder)
    return recorder


def results(root):
    """Everything of a results folder that must not depend on order, time or place."""
    return {
        key: (
            run.record.history,
            {name: (value.value, value.fingerprint) for name, value in run.metrics.items()},
        )
        for key, run in Store(root).runs().items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text):
    """A results folder of the tiny grid."""
    root = tmp_path_factory.mktemp("finished")
    complete, recorder = run(parse_grid(tiny_text, "tiny.yaml"), root)
    assert complete
    return root, recorder


def test_every_run_is_told_of_and_recorded(finished, tiny_grid):
    root, recorder = finished
    assert recorder.plan.total == len(recorder.plan.train) == 4
    assert recorder.count(Started) == recorder.count(EpochEnded) == recorder.count(Finished) == 4
    stored = Store(root).runs()
    assert len(stored) == 4
    for stored_run in stored.values():
        record = stored_run.record
        assert record.status == "complete"
        assert set(record.metrics) == {"sc", "accuracy"}
        assert record.metrics["sc"].fingerprint["n_images"] == 360
        assert record.n_parameters > 0
        assert set(record.seconds) == {"training", "encoding", "scoring"}
        assert len(record.history["loss"]) == 1
        assert record.provenance["packages"]["torch"]
        assert record.settings["training"]["train_images"] == 128


def test_seeds_differ(finished):
    values = [metrics["sc"][0] for _, metrics in results(finished[0]).values()]
    assert len(set(values)) == len(values)


def test_again_trains_nothing(finished, tiny_grid):
    root, _ = finished
    before = results(root)
    complete, recorder = run(tiny_grid, root)
    assert complete
    assert recorder.plan.tasks == []
    assert recorder.events == []
    assert results(root) == before


def test_order_and_parallelism_change_nothing(finished, tiny_text, tmp_path):
    content = yaml.safe_load(tiny_text)
    for table in content["tables"]:
        table["models"].reverse()
        table["metrics"].reverse()
    # One thread a worker either way: sums in another order would round differently.
    shuffled = parse_grid(yaml.safe_dump(content), "tiny.yaml")
    complete, _ = run(shuffled, tmp_path, workers=os.cpu_count())
    assert complete
    assert results(tmp_path) == results(finished[0])


def test_runs_deleted_and_done_again_are_equal(finished, tiny_grid, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished[0], root)
    records = sorted((root / "records").iterdir())
    for path in random.Random(0).sample(records, 2):
        path.unlink()
    complete, recorder = run(tiny_grid, root)
    assert complete
    assert len(recorder.plan.train) == 2
    assert results(root) == results(finished[0])


def test_a_metric_added_later_is_computed_from_what_the_runs_left(finished, tiny_text, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished[0], root)
    more = parse_grid(tiny_text.replace("[sc, accuracy]", "[sc, accuracy, ssim]"), "tiny.yaml")
    complete, recorder = run(more, root)
    assert complete
    assert recorder.plan.train == []
    assert recorder.count(EpochEnded) == 0
    added = {key: dict(metrics) for key, (_, metrics) in results(root).items()}
    assert all(metrics.pop("ssim")[0] is not None for metrics in added.values())
    assert added == {key: metrics for key, (_, metrics) in results(finished[0]).items()}


def test_a_metric_scored_at_once_equals_the_one_added_later(finished, tiny_text, tmp_path):
    text = tiny_text.replace("[sc, accuracy]", "[sc, accuracy, ssim]")
    more = parse_grid(text, "tiny.yaml").select(models=["vae"], seeds=1)
    run(more, tmp_path / "at-once")
    shutil.copytree(finished[0], tmp_path / "later")
    run(more, tmp_path / "later")
    (key,) = results(tmp_path / "at-once")
    at_once, later = (results(tmp_path / name)[key] for name in ("at-once", "later"))
    assert at_once == later


def test_evaluate_fills_in_what_has_no_value_and_trains_nothing(finished, tiny_grid, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(finished[0], root)
    recorder = evaluate(tiny_grid, root, ["sc", "ssim", "nmi"])
    assert recorder.count(EpochEnded) == 0
    assert [task.metrics for task in recorder.plan.rescore] == [["ssim", "nmi"]] * 4
    for _, metrics in results(root).values():
        assert set(metrics) == {"sc", "accuracy", "ssim", "nmi"}
        assert metrics["ssim"][0] is not None
    assert evaluate(tiny_grid, root, ["sc", "ssim", "nmi"]).plan.tasks == []


def test_evaluate_refuses_other_data_than_was_trained_on(finished, tiny_grid):
    stored = {
        key: dataclasses.replace(run, record=run.record.model_copy(update={"data_digest": "other"}))
        for key, run in Store(finished[0]).runs().items()
    }
    with pytest.raises(RunError, match="was trained on other digits data"):
        make_evaluation_plan(tiny_grid, load_data(tiny_grid, finished[0]), stored, ["ssim"])


def test_a_run_that_diverges_is_recorded_and_the_rest_goes_on(tiny_text, tmp_path):
    text = tiny_text.replace("epochs: 1,", "epochs: 2, learning_rate: 1.0e+30,")
    complete, _ = run(parse_grid(text, "tiny.yaml"), tmp_path)
    assert not complete
    statuses = [stored.record.status for stored in Store(tmp_path).runs().values()]
    assert statuses == ["diverged"] * 4
    assert all(stored.record.error for stored in Store(tmp_path).runs().values())


def test_a_worker_that_is_killed_costs_only_its_run(tiny_grid, tmp_path):
    def kill_once(event, killed=[]):  # noqa: B006
        if isinstance(event, Started) and not killed:
            killed.append(event.run.key)
            threading.Timer(0.5, _kill_one_worker).start()

    complete, recorder = run(tiny_grid, tmp_path, Recorder(kill_once))
    assert not complete
    statuses = sorted(stored.record.status for stored in Store(tmp_path).runs().values())
    assert statuses == ["complete"] * 3 + ["failed"]
    (failed,) = [
        event.record
        for event in recorder.events
        if isinstance(event, Finished) and event.record.status == "failed"
    ]
    assert isinstance(failed, Record)
    assert failed.error == "the worker process died: SIGKILL (out of memory?)"

    complete, again = run(tiny_grid, tmp_path)
    assert not complete
    assert again.plan.tasks == []
    complete, again = run(tiny_grid, tmp_path, retry_failed=True)
    assert complete
    assert len(again.plan.train) == 1


def _kill_one_worker():
    import multiprocessing

    for _ in range(100):
        if children := multiprocessing.active_children():
            os.kill(children[0].pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def test_data_that_is_not_there_is_named_before_anything_is_trained(tiny_text, tmp_path):
    grid = parse_grid(
        tiny_text.replace("[digits]", "[digits, mnist]").replace(
            "rows: [metric]", "rows: [metric, dataset]"
        ),
        "tiny.yaml",
    )
    with pytest.raises(RunError, match=r"(?s)mnist: .*add --dataset digits"):
        run(grid, tmp_path)
    assert not (tmp_path / "records").exists()


def test_a_bad_setting_is_named_before_anything_is_trained(tiny_text, tmp_path):
    models = "models: { vae: { model: gmvae, settings: { n_components: -3 } } }\n"
    text = tiny_text.replace("tables:", models + "tables:", 1)
    with pytest.raises(RunError, match=r"L2 cannot be built: n_components: Input .*, got -3$"):
        run(parse_grid(text, "tiny.yaml"), tmp_path)
    assert not (tmp_path / "records").exists()


def test_a_changed_data_file_is_noticed(tiny_grid, tmp_path):
    data = load_data(tiny_grid, tmp_path)
    plan = make_plan(tiny_grid, data, {})
    images = next(iter(data.values()))
    images.train_images[0, 0, 0, 0] ^= 1
    changed = {name: type(d)(**vars_of(d)) for name, d in data.items()}
    keys = {task.run.key for task in plan.train}
    assert keys.isdisjoint(task.run.key for task in make_plan(tiny_grid, changed, {}).train)


def vars_of(data):
    names = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    return {name: getattr(data, name) for name in names}


def test_building_a_model_follows_the_seed_alone(tiny_grid):
    import torch

    cell = next(iter(tiny_grid.cells))
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build_model(cell, (1, 32, 32))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
