"""Jointly trained seeds give the results of separate runs."""

from contextlib import suppress
from itertools import takewhile

import pytest

import hgmvae_bench as hb
from hgmvae_bench.execution.backends import LocalExecutor
from hgmvae_bench.execution.run import JointTrainingError, execute_run, train_jointly
from hgmvae_bench.execution.signals import StoppedError
from hgmvae_bench.execution.task_queue import TaskQueue
from hgmvae_bench.execution.tasks import EpochEnded, Finished, Requeued, RunContext, Started, Task
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.threads import available_cores


def outcome(record):
    """The content of a record that must not depend on joint training."""
    error = (record.error or "").strip().splitlines()[-1:]
    metrics = {name: (m.value, m.fingerprint, m.missing) for name, m in record.metrics.items()}
    return record.status, error, record.history, metrics, record.n_parameters


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("vae", "{}"),
        pytest.param("factor-vae", "{}", marks=pytest.mark.slow),
        pytest.param("vade", "{ pretrain_epochs: 1 }", marks=pytest.mark.slow),
        ("hgmvae-u", "{ warmup_epochs: 1, fisher_delay: 0 }"),
    ],
)
def test_jointly_trained_seeds_are_scored_later_with_the_results_of_separate_runs(
    tiny_text, digits, tmp_path, model, settings
):
    text = tiny_text.replace("epochs: 1,", "epochs: 2,").replace("[vae, wae-imq]", f"[{model}]")
    text = text.replace("tables:", f"models: {{ {model}: {{ settings: {settings} }} }}\ntables:")
    (cell,) = parse_grid(text, "tiny.yaml").cells
    runs = [Run(cell, seed, digits.digest) for seed in range(2)]
    apart, together = Store(tmp_path / "apart"), Store(tmp_path / "together")
    epochs = []
    train_jointly(
        runs,
        digits,
        RunContext(together),
        on_epoch=lambda i, epoch, _: epochs.append((i, epoch)),
    )
    assert epochs == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert together.runs() == {}
    again = []
    for run in runs:
        alone = execute_run(run, digits, ["sc", "ssim"], RunContext(apart))
        scored = execute_run(
            run,
            digits,
            ["sc", "ssim"],
            RunContext(together),
            on_epoch=lambda *a: again.append(a),
        )
        assert alone.status == "complete", alone.error
        assert outcome(scored) == outcome(alone)
        weights = [s.artifact_folder(run.key) / "model.safetensors" for s in (apart, together)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert scored.provenance["resumed_after_epoch"] == 0
        assert scored.provenance["stages"]["training"]["together"] == 2
        assert scored.seconds["training"] > 0.001
    assert again == []
    assert list((tmp_path / "together" / "checkpoints").iterdir()) == []


def test_records_of_stacked_seeds_name_the_stacking(tiny_text, digits, tmp_path):
    text = tiny_text.replace("[vae, wae-imq]", "[vae]")
    (cell,) = parse_grid(text, "tiny.yaml").cells
    runs = [Run(cell, seed, digits.digest) for seed in range(2)]
    apart, together = Store(tmp_path / "apart"), Store(tmp_path / "together")
    train_jointly(runs, digits, RunContext(together, stacked=True))
    for run in runs:
        alone = execute_run(run, digits, ["sc"], RunContext(apart))
        stacked = execute_run(run, digits, ["sc"], RunContext(together))
        training = stacked.provenance["stages"]["training"]
        assert (training["together"], training["stacked"]) == (2, True)
        # Stacked sums round differently; the run key is the same.
        assert stacked.key == alone.key
        for term, means in alone.history.items():
            assert stacked.history[term] == pytest.approx(means, rel=1e-3)
        expected = pytest.approx(alone.metrics["sc"].value, abs=0.02)
        assert stacked.metrics["sc"].value == expected


PLUGIN = """
import os, signal, torch
from hgmvae_bench.plugins.registry import MODELS as KNOWN

class Odd:
    title, reference, settings = "Odd", "none", {"way": "well"}
    def build(self, *, settings, **rest):
        way = settings["way"] if torch.rand(()) < 0.5 else "well"  # by the seed
        model = KNOWN["vae"].build(settings={}, **rest)
        forward = model.forward
        def odd(inputs, **options):
            output = forward(inputs, **options)
            if options["epoch"] == 2 and way == "diverges":
                output["loss"] = output["loss"] * float("nan")
            if options["epoch"] == 2 and way == "raises":
                raise ValueError("a bad seed")
            if options["epoch"] == 2 and way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            return output
        model.forward = odd
        return model

MODELS = {"odd": Odd()}
"""


class Recorder:
    def __init__(self):
        self.events = []

    def on_plan(self, plan): ...

    def on_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def run(grid, root, *, together, stacked=False, stopping=lambda events: False):
    recorder = Recorder()
    with suppress(StoppedError):
        hb.run_grid(
            grid,
            results=root,
            data=root,
            device="cpu",
            # One thread a worker, as in this process: another order of a sum rounds differently.
            executor=LocalExecutor(available_cores(), joint_seeds=together, stacked=stacked),
            reporters=[recorder],
            stopping=lambda: stopping(recorder.events),
            controls=False,
        )
    return {key: outcome(stored.record) for key, stored in Store(root).runs().items()}, recorder


@pytest.fixture
def grid_of(tiny_text, tmp_path):
    """A function that makes a grid of three seeds of the odd model with each of these ways."""
    path = tmp_path / "odd.py"
    path.write_text(PLUGIN)

    def make(*ways, epochs=2):
        models = "".join(f"  {w}: {{ model: odd, settings: {{ way: {w} }} }}\n" for w in ways)
        text = tiny_text.replace("tables:", f"models:\n{models}tables:", 1)
        text = text.replace("[vae, wae-imq]", f"[{', '.join(ways)}]")
        text = text.replace("seeds: 2", "seeds: 3").replace("epochs: 1,", f"epochs: {epochs},")
        return parse_grid(text, "tiny.yaml")

    with using_plugins([LocalPlugin.find(str(path))]):
        yield make


@pytest.mark.slow
def test_a_seed_that_diverges_or_dies_affects_no_other(grid_of, digits, tmp_path):
    outcomes, recorder = run(grid_of("diverges", "dies"), tmp_path / "r", together=3)
    statuses = sorted(outcome[0] for outcome in outcomes.values())
    assert statuses == ["complete"] * 3 + ["diverged"] * 1 + ["failed"] * 2
    for event in recorder.of(Finished):
        record, alone = event.record, Store(tmp_path / "alone")
        if record.status == "failed":
            assert record.error.endswith("the worker process died: SIGKILL (out of memory?)")
        else:
            expected = execute_run(event.run, digits, ["sc", "accuracy"], RunContext(alone))
            assert outcome(record) == outcome(expected)
            together = record.provenance["stages"]["training"].get("together")
            way = event.run.cell.model_settings["way"]
            assert together == {"diverges": 3, "dies": None}[way]
    # All three seeds of the first cell started before the end of an epoch.
    began = list(takewhile(lambda event: isinstance(event, Started), recorder.events))
    assert len(began) >= 3
    # The seeds of the cell with the dying ones were repeated, and no others.
    assert len(recorder.of(Requeued)) == 3
    assert len(recorder.of(Started)) == 9
    for event in recorder.of(Requeued):
        assert event.run.cell.model_settings["way"] == "dies"
    logs = [Store(tmp_path / "r").log_path(event.run.key).read_text() for event in began[:3]]
    assert [f"trained jointly with {began[0].run.key};" in log for log in logs] == [0, 1, 1]
    assert list((tmp_path / "r" / "leases").iterdir()) == []
    # A run that dies may leave a checkpoint, from which a retry continues.
    kept = {path.stem for path in (tmp_path / "r" / "checkpoints").iterdir()}
    assert kept <= {key for key, (status, *_) in outcomes.items() if status == "failed"}


@pytest.mark.slow
def test_stopped_joint_training_continues_every_seed_from_its_checkpoint(grid_of, digits, tmp_path):
    grid, root = grid_of("well", epochs=8), tmp_path / "r"
    ended = lambda events: any(isinstance(event, EpochEnded) for event in events)  # noqa: E731
    outcomes, recorder = run(grid, root, together=3, stopping=ended)
    assert outcomes == {}
    assert [event.reason for event in recorder.of(Requeued)] == ["stopped"] * 3
    assert len(list((root / "checkpoints").iterdir())) == 3
    _, recorder = run(grid, root, together=3)
    assert not any(event.epoch == 1 for event in recorder.of(EpochEnded))
    for event in recorder.of(Finished):
        alone = execute_run(
            event.run, digits, ["sc", "accuracy"], RunContext(Store(tmp_path / "alone"))
        )
        assert outcome(event.record) == outcome(alone)


@pytest.mark.slow
def test_workers_stack_the_seeds_of_a_cell_on_request(grid_of, tmp_path):
    grid, root = grid_of("well"), tmp_path / "r"
    run(grid, root, together=3, stacked=True)
    records = [stored.record for stored in Store(root).runs().values()]
    assert [record.status for record in records] == ["complete"] * 3
    for record in records:
        training = record.provenance["stages"]["training"]
        assert (training["together"], training["stacked"]) == (3, True)


def test_a_failing_joint_training_raises_the_reason_and_prints_the_cause(
    grid_of, digits, tmp_path, capsys
):
    (cell,) = grid_of("raises").cells
    runs = [Run(cell, seed, digits.digest) for seed in range(3)]
    with pytest.raises(JointTrainingError, match=r"^ValueError: a bad seed$"):
        train_jointly(runs, digits, RunContext(Store(tmp_path)))
    assert "ValueError: a bad seed" in capsys.readouterr().err.splitlines()[-1]


def test_free_seeds_of_a_cell_are_handed_out_as_a_batch(grid_of, digits, tmp_path):
    one, other = grid_of("well", "raises").cells
    tasks = [Task(Run(cell, seed, digits.digest), []) for cell in (one, other) for seed in range(3)]
    store = Store(tmp_path)
    with Leases(store.files, "a") as ours, Leases(store.files, "b") as theirs:
        assert theirs.acquire(f"{tasks[1].run.key}.json")
        work = TaskQueue(tasks, store, ours, lambda: False, lambda run: None)
        assert work.batch(3) == [tasks[0], tasks[2]]
        assert work.batch(2) == tasks[3:5]
        assert work.batch(2) == [tasks[5]]
        assert work.batch(2) == []
