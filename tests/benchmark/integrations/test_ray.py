"""A real Ray cluster of several nodes on this machine."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hgmvae_bench as hb
from hgmvae_bench.data import ImageData
from hgmvae_bench.execution import session
from hgmvae_bench.execution.run import execute_run
from hgmvae_bench.execution.signals import StoppedError
from hgmvae_bench.execution.tasks import (
    EpochEnded,
    ExecutorError,
    Finished,
    Requeued,
    RunContext,
    Started,
)
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.checkpoints import Checkpoint

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.slow

from hgmvae_bench.execution.ray import driver  # noqa: E402
from hgmvae_bench.execution.ray.driver import RayExecutor  # noqa: E402
from hgmvae_bench.execution.ray.worker import Images  # noqa: E402

SHARING = """
import pathlib, time, ray, torch
from hgmvae_bench.plugins.registry import MODELS as KNOWN

class Odd:
    title, reference, settings = "Odd", "none", {"way": "meets"}
    def build(self, *, settings, **rest):
        there = pathlib.Path("FOLDER")
        if settings["way"] == "meets":
            (there / ray.get_runtime_context().get_worker_id()).touch()
            while len(list(there.iterdir())) < 2:
                time.sleep(0.1)
        if settings["way"] == "large":
            if ray.get_runtime_context().get_assigned_resources()["GPU"] < 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return KNOWN["vae"].build(settings={}, **rest)

MODELS = {"odd": Odd()}
"""

# A checkpoint after every epoch; the first epoch ends when two runs are under way.
EAGER = """
import os, pathlib, time
from hgmvae_bench.training.checkpoints import Checkpoint

def is_due(_):
    there = pathlib.Path("FOLDER")
    (there / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(there.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return True

Checkpoint.is_due = is_due
"""

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")
MEMORY = 100 * 2**20

# Maximum seconds of any step on a busy machine.
TIMEOUT = 120


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Recorder:
    def __init__(self, react=lambda event: None):
        self.events, self.react = [], react

    def on_plan(self, plan):
        pass

    def on_event(self, event):
        self.events.append(event)
        self.react(event)

    def keys(self, kind):
        return sorted(event.run.key for event in self.events if isinstance(event, kind))


def run(grid, root, executor, recorder=None, **options):
    recorder = recorder or Recorder()
    with pytest.MonkeyPatch.context() as patch:
        # Some of the models here can only be built on a node.
        patch.setattr(session, "check_cells", lambda *_: None)
        results = hb.run_grid(
            grid,
            results=root,
            data=root,
            device="cpu",
            executor=executor,
            reporters=[recorder],
            controls=False,
            **options,
        )
    return all(run.record.status == "complete" for run in results.runs), recorder


def results(root):
    return {
        key: (run.record.history, {n: (m.value, m.fingerprint) for n, m in run.metrics.items()})
        for key, run in Store(root).runs().items()
    }


def resumed_after(root):
    """The epoch after which each run was continued, by key; 0 if it was not."""
    return {
        key: run.record.provenance["resumed_after_epoch"] for key, run in Store(root).runs().items()
    }


def checkpoints(root):
    return {path.name.removesuffix(".safetensors") for path in (root / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without cores for runs, and two nodes with one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("node-cache")))
        # Ray's workers give way to everything else by default, the rest of the tests included.
        patch.setenv("RAY_worker_niceness", "0")
        cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": MEMORY,
            },
        )
        try:
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
            ray.init(cluster.address, log_to_driver=False)
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def longer(tiny_text):
    """Three runs of a second or more."""
    text = tiny_text.replace("epochs: 1", "epochs: 8").replace("128", "512")
    text = text.replace("[sc, accuracy]", "[sc]").replace("seeds: 2", "seeds: 3")
    return parse_grid(text, "g.yaml").select(models=["vae"])


@pytest.fixture(scope="module")
def undisturbed(longer, digits, tmp_path_factory):
    """Results of the longer grid, computed sequentially in this process."""
    root = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for (cell, metrics), seed in itertools.product(longer.cells.items(), range(3)):
        run = Run(cell, seed, digits.digest)
        execute_run(run, digits, metrics, RunContext(Store(root)))
    torch.set_num_threads(threads)
    return results(root)


@pytest.mark.extended
def test_a_lost_node_costs_at_most_an_epoch(
    cluster, longer, undisturbed, mean_plugin, tmp_path, monkeypatch
):
    cluster, nodes = cluster
    lost = []

    def lose_a_node(event):
        under_way = set(recorder.keys(Started)) - set(recorder.keys(Finished))
        # The run of a lost node is pending again, and counts as under way.
        assert len(under_way) <= 2 + len(lost), "more runs than cores"
        training = {key for key in under_way if key in recorder.keys(EpochEnded)}
        if not lost and len(training) == 2 and isinstance(event, EpochEnded) and event.epoch < 5:
            lost.append(nodes.pop())
            cluster.remove_node(lost[0], allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=MEMORY))

    # A plug-in's code reaches the workers; checkpoints would otherwise come every 20 seconds.
    monkeypatch.setattr(Checkpoint, "is_due", Checkpoint.is_due)
    (tmp_path / "there").mkdir()
    eager = EAGER.replace("FOLDER", str(tmp_path / "there"))
    recorder = Recorder(lose_a_node)
    with using_plugins([LocalPlugin("eager.py", eager + mean_plugin)]):
        complete, _ = run(longer, tmp_path, RayExecutor(), recorder)
    assert complete
    assert lost, "no node was lost"
    records = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert len(records) == 3
    # Each run was reported once and stored once.
    for kind in (Started, Finished):
        assert recorder.keys(kind) == [name.removesuffix(".json") for name in records]
    for name in records:
        folder = tmp_path / "artifacts" / name.removesuffix(".json")
        assert {path.name for path in folder.iterdir()} == {
            "model.safetensors",
            "codes.safetensors",
        }
    assert len([epoch for epoch in resumed_after(tmp_path).values() if epoch]) == 1
    assert results(tmp_path) == undisturbed
    assert checkpoints(tmp_path) == set()


@pytest.mark.extended
def test_one_ctrl_c_stops_at_the_end_of_an_epoch_and_two_stop_at_once(
    cluster, longer, undisturbed, tmp_path
):
    def interrupt(event):
        # Processes start at their own pace: one run may end before another starts.
        if isinstance(event, EpochEnded) and event.epoch == 1:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            recorder.react = lambda event: None

    def interrupted():
        run(longer, tmp_path, RayExecutor(), recorder, advice="the same again")

    times, recorder = 1, Recorder(interrupt)
    with pytest.raises(StoppedError, match=r"^stopped; the same again$") as stopped:
        interrupted()
    assert stopped.value.exit_status == 130
    started, finished = set(recorder.keys(Started)), set(recorder.keys(Finished))
    assert len(started) <= 2, "a further run was started"
    assert {event.reason for event in recorder.events if isinstance(event, Requeued)} == {"stopped"}
    left = checkpoints(tmp_path)
    assert set(recorder.keys(Requeued)) == started - finished >= left != set()
    assert set(Store(tmp_path).runs()) == finished

    times, recorder = 2, Recorder(interrupt)
    with pytest.raises(StoppedError, match=r"^stopped at once; the same again$"):
        interrupted()
    assert not recorder.keys(Requeued)
    wait_for(lambda: ray.available_resources().get("CPU") == 2)

    assert run(longer, tmp_path, RayExecutor())[0]
    assert results(tmp_path) == undisturbed
    resumed = {key for key, epoch in resumed_after(tmp_path).items() if epoch}
    assert resumed >= left
    assert checkpoints(tmp_path) == set()


def test_a_lost_cluster_ends_the_grid_with_an_error(cluster, longer, tmp_path, monkeypatch):
    cluster, _ = cluster
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda reference, **_: cancelled.append(reference))

    def lose_the_mailbox(event):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(b"ray::Mailbox"):
                    parent = re.search(r"PPid:\s+(\d+)", path.with_name("status").read_text())[1]
                    # Another cluster may run on this machine.
                    if cluster.address in Path(f"/proc/{parent}/cmdline").read_text():
                        os.kill(int(path.parent.name), signal.SIGKILL)

    grid = longer.select(seeds=1)
    with pytest.raises(ExecutorError, match=r"does not answer: .*; repeat the command"):
        run(grid, tmp_path, RayExecutor(), Recorder(lose_the_mailbox))
    assert Store(tmp_path).runs() == {}
    assert cancelled == [], "Ray aborts the driver if what is cancelled is just ending"
    wait_for(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.extended
def test_sigterm_stops_the_command_and_the_message_names_it(cluster, tiny_text, tmp_path):
    cluster, _ = cluster
    (tmp_path / "g.yaml").write_text(tiny_text.replace("epochs: 1", "epochs: 4000"))
    options = "--grid g.yaml --results r --model vae --seeds 1 --executor ray --ray-address"
    process = subprocess.Popen(
        [HGMVAE_BENCH, "run", *options.split(), cluster.address],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any("started" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, err
    assert "to continue: hgmvae-bench run --grid g.yaml" in err
    assert "Traceback" not in err
    assert len(checkpoints(tmp_path / "r")) == 1


def test_metrics_added_later_plugins_and_a_classifier_reach_every_node(
    cluster, tiny_text, mean_plugin, tmp_path, monkeypatch
):
    from hgmvae_bench.evaluation.metrics import classifier

    monkeypatch.setattr(classifier, "STEPS", 10)
    grid = parse_grid(tiny_text, "g.yaml").select(models=["vae"])
    assert run(grid, tmp_path, RayExecutor())[0]
    text = tiny_text.replace("[sc, accuracy]", "[sc, accuracy, mean-code, fid-classifier]")
    with using_plugins([LocalPlugin("mean.py", mean_plugin)]):
        more = parse_grid(text, "g.yaml").select(models=["vae"])
        complete, recorder = run(more, tmp_path, RayExecutor())
    assert complete
    assert recorder.keys(EpochEnded) == []
    stored = Store(tmp_path).runs().values()
    assert len(stored) == 2
    # The nodes would train a classifier of 1000 steps; they received the driver's.
    classifiers = list((tmp_path / "cache" / "classifiers").glob("*/weights.safetensors"))
    assert len(classifiers) == 1
    fingerprints = {stored.metrics["fid-classifier"].fingerprint["weights"] for stored in stored}
    assert len(fingerprints) == 1
    for run_ in stored:
        assert run_.metrics["mean-code"].value is not None
        assert run_.metrics["fid-classifier"].value is not None


@pytest.mark.extended
def test_a_run_that_hangs_crashes_or_raises_affects_no_other_and_keeps_its_log(
    cluster, odd_plugin, odd_text, tmp_path
):
    with using_plugins([LocalPlugin("odd.py", odd_plugin)]):
        grid = parse_grid(odd_text("hangs", "crashes", "raises", "out-of-memory", "well"), "g.yaml")
        complete, _ = run(grid, tmp_path, RayExecutor(retries=1), time_limit=40.0)
    assert not complete
    records = {
        run.record.settings["model"]["settings"]["way"]: run.record
        for run in Store(tmp_path).runs().values()
    }
    statuses = {way: record.status for way, record in records.items()}
    assert statuses == {
        "hangs": "failed",
        "crashes": "failed",
        "raises": "failed",
        "out-of-memory": "failed",
        "well": "complete",
    }
    errors = {way: record.error for way, record in records.items()}
    assert errors["hangs"].splitlines()[-1] == "not finished within the time limit of 40 s"
    assert re.search(r'odd\.py", line \d+ in build', errors["hangs"])
    assert "\nlost 2 times: WorkerCrashedError" in errors["crashes"]
    assert re.search(r'odd\.py", line \d+ in build', errors["crashes"])
    assert errors["out-of-memory"].endswith("Tried to allocate 1 GiB, with no other run on the GPU")
    assert errors["raises"].splitlines()[-1] == "ValueError: no such thing"
    assert "Traceback" in errors["raises"]
    for record in records.values():
        log = Store(tmp_path).log_path(record.key).read_text()
        assert "a word from the model" in log
        assert "a warning from the model" in log


@pytest.mark.extended
def test_a_fraction_of_a_gpu_limits_the_concurrent_runs(cluster, odd_text, tmp_path):
    cluster, _ = cluster
    node = cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=MEMORY)
    under_way, most = set(), []

    def count(event):
        under_way.add(event.run.key)
        if isinstance(event, Finished | Requeued):
            under_way.discard(event.run.key)
        most.append(len(under_way))

    (tmp_path / "there").mkdir()
    with using_plugins(
        [LocalPlugin("sharing.py", SHARING.replace("FOLDER", str(tmp_path / "there")))]
    ):
        grid = parse_grid(odd_text("meets").replace("seeds: 1", "seeds: 3"), "g.yaml")
        complete, _ = run(grid, tmp_path, RayExecutor(gpus=0.5), Recorder(count))
        assert complete
        assert max(most) == 2
        # A GPU with too little memory for two runs gets one at a time.
        grid = parse_grid(odd_text("large"), "g.yaml")
        complete, recorder = run(grid, tmp_path, RayExecutor(gpus=0.5))
    cluster.remove_node(node)
    assert complete
    (requeued,) = (event for event in recorder.events if isinstance(event, Requeued))
    assert re.search("out of memory.* 1 of a GPU", requeued.reason)


def test_a_dataset_is_read_from_shared_memory(cluster, digits):
    reference = ray.put(Images.of(digits))
    images = ray.get(reference)
    data = images.data()
    assert isinstance(data, ImageData)
    assert data.digest == digits.digest
    assert data.class_names == digits.class_names
    array = images.splits["train_images"]
    assert not array.flags.writeable, "shared memory, which nobody may write to"
    assert data.train_images.data_ptr() == array.ctypes.data


def test_an_unreachable_cluster_is_named(tiny_grid, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _refuse)
    with pytest.raises(ExecutorError, match=r"no Ray cluster can be reached at 10\.0\.0\.1:6379"):
        run(tiny_grid, tmp_path, RayExecutor("10.0.0.1:6379"))
    assert not (Path(tmp_path) / "records").exists()


def test_an_address_that_is_not_used_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with driver._connected(None):
        assert caplog.text == ""
    with driver._connected("10.0.0.1:6379"):
        assert "the address 10.0.0.1:6379 is not used" in caplog.text


def _refuse(*_, **__):
    raise ConnectionError("no answer")
