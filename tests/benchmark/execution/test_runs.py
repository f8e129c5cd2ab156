"""Grids through the driver and its worker processes."""

import json
import multiprocessing
import os
import random
import shutil
import signal
from functools import partial

import pytest
import yaml

import hgmvae_bench as hb
from hgmvae_bench.execution import runner
from hgmvae_bench.execution.backends import LocalExecutor
from hgmvae_bench.execution.plan import PlanError, make_evaluation_plan, make_plan
from hgmvae_bench.execution.preflight import load_data
from hgmvae_bench.execution.runner import execute_plan
from hgmvae_bench.execution.task_queue import TaskQueue
from hgmvae_bench.execution.tasks import EpochEnded, Finished, RunContext, Started, Task
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model
from hgmvae_bench.utils.threads import available_cores


class Recorder:
    """Reporter that keeps the plan and the events, and calls ``react`` with every event."""

    def __init__(self, react=lambda event: None):
        self.plan, self.events, self.react = None, [], react

    def on_plan(self, plan):
        self.plan = plan

    def on_event(self, event):
        self.events.append(event)
        self.react(event)

    def count(self, kind):
        return sum(isinstance(event, kind) for event in self.events)


# Both use one thread a worker: another order of a sum would round differently.
CONCURRENT = LocalExecutor(available_cores())
SEQUENTIAL = LocalExecutor(1, available_cores())


def run(grid, root, recorder=None, *, executor=SEQUENTIAL, retry_failed=False):
    recorder = recorder or Recorder()
    results = hb.run_grid(
        grid,
        results=root,
        data=root,
        device="cpu",
        executor=executor,
        reporters=[recorder],
        retry_failed=retry_failed,
        controls=False,
    )
    return all(run.record.status == "complete" for run in results.runs), recorder


def evaluate(grid, root, metrics):
    recorder = Recorder()
    hb.evaluate_grid(
        metrics,
        grid=grid,
        results=root,
        data=root,
        device="cpu",
        executor=SEQUENTIAL,
        reporters=[recorder],
        controls=False,
    )
    return recorder


def results(root):
    """Everything of a results folder that must not depend on order, time or machine."""
    return {
        key: (
            run.record.history,
            {name: (value.value, value.fingerprint) for name, value in run.metrics.items()},
        )
        for key, run in Store(root).runs().items()
    }


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A results folder of the tiny grid, whose runs were concurrent."""
    return shutil.copytree(tiny_run / "r", tmp_path / "finished")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory, tiny_text):
    """A results folder of the tiny grid, run sequentially, models and metrics reversed."""
    content = yaml.safe_load(tiny_text)
    for table in content["tables"]:
        table["models"].reverse()
        table["metrics"].reverse()
    root = tmp_path_factory.mktemp("shuffled")
    complete, recorder = run(parse_grid(yaml.safe_dump(content), "tiny.yaml"), root)
    assert complete
    return root, recorder


def test_every_run_is_reported_and_recorded(shuffled):
    root, recorder = shuffled
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
    values = [metrics["sc"][0] for _, metrics in results(finished).values()]
    assert len(set(values)) == len(values)


def test_a_repeated_call_trains_nothing(finished, tiny_grid):
    before = results(finished)
    complete, recorder = run(tiny_grid, finished)
    assert complete
    assert recorder.plan.tasks == []
    assert recorder.events == []
    assert results(finished) == before


def test_metrics_that_another_driver_did_not_compute_are_computed_after_it(finished, tiny_grid):
    """Both drivers have planned before; their score records of a run have the same name."""
    data, stored = load_data(tiny_grid, finished), Store(finished).runs()
    plans = [make_evaluation_plan(tiny_grid, data, stored, [name]) for name in ("nmi", "ari")]
    finished_by_second = []
    for plan in plans:
        recorder = Recorder()
        execute_plan(
            plan,
            RunContext(Store(finished), finished),
            executor=SEQUENTIAL,
            reporter=recorder,
        )
        finished_by_second = [e.run.key for e in recorder.events if isinstance(e, Finished)]
    assert sorted(finished_by_second) == sorted(stored)
    for stored_run in Store(finished).runs().values():
        assert stored_run.metrics["nmi"].value is not None
        assert stored_run.metrics["ari"].value is not None
        assert stored_run.scorings == 2


def test_files_of_dead_drivers_are_removed(finished, tiny_grid, monkeypatch):
    monkeypatch.setattr(runner, "Leases", partial(Leases, expiry=0.0))
    key = next(iter(Store(finished).runs()))
    sign = {"machine": "another", "pid": 1, "start": "1", "count": 0}
    left = {
        # Left by a driver that was killed between the record and the removal of the checkpoint.
        "checkpoints": f"{key}.safetensors",
        # Left by a driver on another machine, and by one that was writing tables.
        "leases": "dead.alive",
        "artifacts": ".tmp-dead-weights",
        "tables/tiny": ".tmp-dead-table",
    }
    for folder, name in left.items():
        (finished / folder).mkdir(parents=True, exist_ok=True)
        (finished / folder / name).write_text(json.dumps(sign))
    *_, other = Store(finished).runs()
    (finished / "records" / f"{other}.json").unlink()
    assert run(tiny_grid, finished)[0]
    assert not [name for folder, name in left.items() if (finished / folder / name).exists()]


def test_order_and_concurrency_change_no_result(finished, shuffled):
    assert results(shuffled[0]) == results(finished)


def test_deleted_runs_are_repeated_with_equal_results(finished, tiny_grid):
    before = results(finished)
    records = sorted((finished / "records").iterdir())
    for path in random.Random(0).sample(records, 2):
        path.unlink()
    complete, recorder = run(tiny_grid, finished)
    assert complete
    assert len(recorder.plan.train) == 2
    assert results(finished) == before


@pytest.fixture(scope="module")
def with_ssim(tiny_text):
    """The tiny grid with one more metric."""
    return parse_grid(tiny_text.replace("[sc, accuracy]", "[sc, accuracy, ssim]"), "tiny.yaml")


@pytest.fixture(scope="module")
def extended(tiny_run, with_ssim, tmp_path_factory):
    """The results of the tiny grid with a metric added later."""
    root = shutil.copytree(tiny_run / "r", tmp_path_factory.mktemp("extended") / "r")
    complete, recorder = run(with_ssim, root)
    assert complete
    return results(root), recorder


def test_a_metric_added_later_is_computed_from_the_artifacts(finished, extended):
    added, recorder = extended
    assert recorder.plan.train == []
    assert recorder.count(EpochEnded) == 0
    values = {key: dict(metrics) for key, (_, metrics) in added.items()}
    assert all(metrics.pop("ssim")[0] is not None for metrics in values.values())
    assert values == {key: metrics for key, (_, metrics) in results(finished).items()}


def test_a_metric_computed_with_the_run_equals_one_added_later(extended, with_ssim, tmp_path):
    run(with_ssim.select(models=["vae"], seeds=1), tmp_path)
    ((key, at_once),) = results(tmp_path).items()
    assert at_once == extended[0][key]


def test_evaluate_computes_missing_metrics_and_trains_nothing(finished, tiny_grid):
    recorder = evaluate(tiny_grid, finished, ["sc", "ssim", "nmi"])
    assert recorder.count(EpochEnded) == 0
    assert [task.metrics for task in recorder.plan.score] == [["ssim", "nmi"]] * 4
    for _, metrics in results(finished).values():
        assert set(metrics) == {"sc", "accuracy", "ssim", "nmi"}
        assert metrics["ssim"][0] is not None
    assert evaluate(tiny_grid, finished, ["sc", "ssim", "nmi"]).plan.tasks == []


def test_a_run_without_weights_costs_only_its_own_metrics(finished, with_ssim):
    store = Store(finished)
    first, second, *others = store.runs()
    (store.artifact_folder(first) / "model.safetensors").unlink()
    (store.artifact_folder(second) / "model.safetensors").write_bytes(b"damaged")
    complete, recorder = run(with_ssim, finished)
    assert complete
    assert recorder.count(Finished) == 4
    scored = {key: stored.metrics["ssim"] for key, stored in store.runs().items()}
    assert all(scored[key].value is not None for key in others)
    assert "not saved" in scored[first].missing
    assert "damaged" in scored[second].missing
    # The reason names the file within the results folder.
    assert scored[first].missing.startswith(f"artifacts{os.sep}{first}")
    _, again = run(with_ssim, finished)
    assert again.plan.tasks == []


def test_evaluate_refuses_runs_on_other_data(finished, tiny_grid):
    stored = {
        key: StoredRun(
            run.record.model_copy(update={"data_digest": "other"}), run.sha256, run.metrics
        )
        for key, run in Store(finished).runs().items()
    }
    with pytest.raises(PlanError, match="was trained on other digits data"):
        make_evaluation_plan(tiny_grid, load_data(tiny_grid, finished), stored, ["ssim"])


def test_diverging_runs_are_recorded_and_the_grid_continues(tiny_text, tmp_path):
    text = tiny_text.replace("epochs: 1,", "epochs: 2, learning_rate: 1.0e+30,")
    complete, _ = run(parse_grid(text, "tiny.yaml"), tmp_path)
    assert not complete
    statuses = [stored.record.status for stored in Store(tmp_path).runs().values()]
    assert statuses == ["diverged"] * 4
    assert all(stored.record.error for stored in Store(tmp_path).runs().values())


def test_a_killed_worker_loses_only_its_run(tiny_grid, tmp_path):
    def kill_once(event, killed=[]):  # noqa: B006
        if isinstance(event, Started) and not killed:
            killed.append(event.run.key)
            [worker, *_] = multiprocessing.active_children()  # It has just been given the run.
            os.kill(worker.pid, signal.SIGKILL)

    complete, recorder = run(tiny_grid, tmp_path, Recorder(kill_once), executor=CONCURRENT)
    assert not complete
    statuses = sorted(stored.record.status for stored in Store(tmp_path).runs().values())
    assert statuses == ["complete"] * 3 + ["failed"]
    (failed,) = [
        event.record
        for event in recorder.events
        if isinstance(event, Finished) and event.record.status == "failed"
    ]
    assert isinstance(failed, Record)
    assert failed.error.endswith("the worker process died: SIGKILL (out of memory?)")
    assert failed.provenance["grid"]["name"] == tiny_grid.spec.name
    assert failed.provenance["device"] == "cpu"

    complete, again = run(tiny_grid, tmp_path)
    assert not complete
    assert again.plan.tasks == []
    complete, again = run(tiny_grid, tmp_path, retry_failed=True)
    assert complete
    assert len(again.plan.train) == 1


def test_a_pythae_model_runs_and_is_scored_later(tiny_grid, tmp_path):
    grid = tiny_grid.with_models(["pythae:RAE_L2"]).select(models=["pythae:RAE_L2"], seeds=1)
    complete, _ = run(grid, tmp_path)
    assert complete
    evaluate(grid, tmp_path, ["ssim"])
    ((_, metrics),) = results(tmp_path).values()
    assert set(metrics) == {"sc", "accuracy", "ssim"}
    assert all(value is not None for value, *_ in metrics.values())


def test_changed_data_changes_the_run_keys(tiny_grid, tmp_path):
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


def test_initial_weights_depend_only_on_the_seed(tiny_grid):
    import torch

    cell = next(iter(tiny_grid.cells))
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build_model(cell, (1, 32, 32))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_error_of_a_callback_is_not_reported_as_one_of_the_results_folder(
    tiny_grid, digits, tmp_path
):
    def fail(_):
        raise FileNotFoundError("the callback's own file")

    with pytest.raises(FileNotFoundError, match="the callback's own file"):
        run(tiny_grid, tmp_path, Recorder(fail))
    done = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    store = Store(tmp_path / "other")
    store.add(Record.of(done, status="complete"))
    queue = TaskQueue([Task(done, [])], store, Leases(store.files, "me"), lambda: False, fail)
    with pytest.raises(FileNotFoundError, match="the callback's own file"):
        next(queue)


def test_leases_that_cannot_be_written_are_named(tiny_grid, tmp_path):
    (tmp_path / "leases").write_text("not a folder")
    with pytest.raises(StoreError, match="leases: cannot be written"):
        run(tiny_grid, tmp_path)
