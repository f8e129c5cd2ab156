"""Scheduling on a GPU, with simulated workers."""

import errno
import multiprocessing
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hgmvae_bench.execution import local_pool, worker_process
from hgmvae_bench.execution.backends import (
    INITIAL_JOINT_SEEDS,
    MAX_JOINT_SEEDS,
    LocalExecutor,
    local_executor,
)
from hgmvae_bench.execution.gpu_capacity import ConcurrencyLimit, gpu_capacity
from hgmvae_bench.execution.local_pool import WorkerPool
from hgmvae_bench.execution.local_worker import (
    JointTrainingFailed,
    TrainedJointly,
)
from hgmvae_bench.execution.tasks import (
    ExecutorError,
    Finished,
    FinishedElsewhere,
    OutOfMemory,
    Requeued,
    RunContext,
    Started,
    Stopped,
    Task,
)
from hgmvae_bench.execution.worker_process import WorkerProcess
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.threads import available_cores

GIB = 2**30

SETTINGS = {
    "dataset": {"name": "digits", "image_size": 32},
    "model": {"name": "vae"},
    "latent_dim": 8,
    "network": {},
    "training": {},
}


def record(run=None, *, peak=None, total=None, key="k", together=1, scoring=None):
    stages = {"training": {"peak_gpu_bytes": peak, "together": together}}
    stages["scoring"] = {"peak_gpu_bytes": peak if scoring is None else scoring}
    provenance = {"stages": stages, "gpu_bytes": total}
    if run is not None:
        return Record.of(run, status="complete", provenance=provenance)
    return Record(
        key=key,
        cell="c",
        seed=0,
        settings=SETTINGS,
        data_digest="d",
        status="complete",
        provenance=provenance,
    )


def test_gpu_capacity_is_what_the_memory_holds_of_the_measured_run():
    # 0.6 of the memory less 0.65 GiB of the process is for training, 0.3 for scoring.
    assert gpu_capacity(record(peak=2 * GIB, total=80 * GIB)) == (23, 9)
    assert gpu_capacity(record(peak=20 * GIB, total=80 * GIB, together=10, scoring=GIB)) == (23, 14)
    assert gpu_capacity(record(peak=60 * GIB, total=80 * GIB)) == (0, 0)
    assert gpu_capacity(record(peak=None, total=None)) == (0, 0)
    assert gpu_capacity(record().model_copy(update={"provenance": {}})) == (0, 0)


def test_seeds_are_trained_jointly_on_a_gpu_only():
    cores = available_cores()
    expected = LocalExecutor(1, max(1, cores - 1), INITIAL_JOINT_SEEDS, MAX_JOINT_SEEDS)
    assert local_executor("cuda") == expected
    assert local_executor("cuda", 6) == LocalExecutor(6, joint_seeds=6)
    for workers in (None, 6):
        stacked = local_executor("cuda", workers, stacked=True)
        assert stacked == replace(local_executor("cuda", workers), stacked=True)
    assert local_executor("cpu") == LocalExecutor(cores, joint_seeds=1)
    assert local_executor("cpu", 6) == LocalExecutor(6, joint_seeds=1)


class Tasks:
    stopping = False

    def __init__(self, tasks):
        self.waiting = deque(tasks)

    def __iter__(self):
        while self.waiting:
            yield self.waiting.popleft()

    def batch(self, most):
        cell = self.waiting[0].run.cell if self.waiting else None
        batch = []
        while self.waiting and len(batch) < most and self.waiting[0].run.cell == cell:
            batch.append(self.waiting.popleft())
        return batch


class FakeProcess:
    pid, exitcode = 0, 0

    def kill(self): ...

    def join(self, timeout=None): ...


class FakePipe:
    """Pipe whose messages the test supplies."""

    def __init__(self):
        self.messages = deque()

    def send(self, sent):
        self.sent = sent

    def recv(self):
        return self.messages.popleft()

    def close(self): ...


@pytest.fixture
def pool(tiny_grid, tmp_path, monkeypatch):
    tasks = Tasks(Task(Run(cell, seed, "d"), []) for cell in tiny_grid.cells for seed in range(10))
    setup = RunContext(Store(tmp_path), tmp_path)
    pool = WorkerPool(tasks, setup, ConcurrencyLimit(1, 4), ConcurrencyLimit(1, 1))

    def start_worker(context):
        return WorkerProcess(FakeProcess(), FakePipe())

    monkeypatch.setattr(local_pool, "start_worker", start_worker)
    return pool


class FakeContext:
    """Start method whose first ``failures`` attempts fail."""

    def __init__(self, failures):
        self.failures = failures
        self.Pipe, self.Process = multiprocessing.Pipe, self.process

    def process(self, **_):
        return self

    def start(self):
        self.failures -= 1
        if self.failures >= 0:
            raise (EOFError, ConnectionResetError)[self.failures % 2]


def test_starting_a_worker_is_retried_while_a_killed_fork_server_exits(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(worker_process.time, "sleep", slept.append)
    context = RunContext(Store(tmp_path), tmp_path)
    monkeypatch.setattr(worker_process, "process_context", lambda _: FakeContext(4))
    assert worker_process.start_worker(context).tasks == ()
    assert sum(slept) > 4
    monkeypatch.setattr(worker_process, "process_context", lambda _: FakeContext(5))
    with pytest.raises(ExecutorError, match="no worker process could be started in 5"):
        worker_process.start_worker(context)


def answer(pool, worker, message):
    worker.pipe.messages.append(message)
    events = list(pool.receive(worker))
    list(pool.assign_waiting())
    return events


def finish(pool, worker, **measured):
    run = worker.tasks[0].run
    return answer(pool, worker, Finished(run, record(run, **measured)))


def test_the_first_run_is_alone_and_its_memory_sets_the_limit(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    finish(pool, worker, peak=GIB, total=12 * GIB)
    assert len(pool.busy) == 2
    finish(pool, pool.busy[0], peak=GIB // 9, total=99 * GIB)
    assert len(pool.busy) == 4


def test_out_of_memory_requeues_the_run_with_fewer_concurrent_runs(pool):
    pool.separate.current = 3
    list(pool.assign_waiting())
    victim = pool.busy[1]
    run = victim.tasks[0].run
    (event,) = answer(pool, victim, OutOfMemory("CUDA out of memory"))
    assert event == Requeued(run, "CUDA out of memory; continuing with at most 2 concurrent runs")
    assert len(pool.busy) == 2
    assert pool.waiting[0][0].run == run
    # The limit stays lowered, however small the next run is.
    finish(pool, pool.busy[0], peak=GIB, total=99 * GIB)
    assert len(pool.busy) == 2
    assert run in [worker.tasks[0].run for worker in pool.busy]


def test_a_run_without_memory_on_an_empty_gpu_fails(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    (event,) = answer(pool, worker, OutOfMemory("CUDA out of memory"))
    assert event.record.status == "failed"
    assert event.record.error == "CUDA out of memory, with no other run on the GPU"
    assert len(pool.busy) == 1


def test_scoring_that_dies_is_recorded_with_the_end_of_its_log(pool):
    store, (run, *_) = pool.context.store, [task.run for task in pool.tasks]
    store.add(record(run), 0)
    store.log_path(run.key).parent.mkdir()
    store.log_path(run.key).write_text("last words")
    task = Task(run, ["sc"], store.runs()[run.key], 1)
    (event,) = pool.handle_loss([task], "the worker process died")
    assert store.runs()[run.key].metrics == event.record.metrics
    assert event.record.metrics["sc"].missing == "last words\nthe worker process died"
    # A worker that died after it had recorded its run.
    assert list(pool.handle_loss([task], "the worker process died")) == [FinishedElsewhere(run)]


def test_a_worker_whose_run_was_recorded_elsewhere_gets_the_next(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    run = worker.tasks[0].run
    assert answer(pool, worker, FinishedElsewhere(run)) == [FinishedElsewhere(run)]
    assert worker.tasks[0].run != run


@pytest.fixture
def gpu(pool):
    """The pool after a first run whose memory allows 32 joint seeds and 4 runs."""
    pool.joint.maximum = 32
    list(pool.assign_waiting())
    assert [len(worker.tasks) for worker in pool.busy] == [1]
    finish(pool, pool.busy[0], peak=GIB, total=80 * GIB)
    return pool


def trainer(pool):
    (worker,) = [worker for worker in pool.busy if len(worker.tasks) > 1]
    return worker


def test_seeds_of_a_cell_are_trained_jointly_and_scored_while_the_next_cell_trains(gpu):
    first = trainer(gpu).tasks
    assert [task.run.seed for task in first] == list(range(1, 10))
    assert gpu.n_separate == 0
    assert answer(gpu, trainer(gpu), TrainedJointly()) == []
    # Four workers score them in order while all seeds of the next cell are trained.
    scoring = [worker for worker in gpu.busy if len(worker.tasks) == 1]
    assert [worker.tasks[0] for worker in scoring] == first[:4]
    assert [task.run.seed for task in trainer(gpu).tasks] == list(range(10))
    assert trainer(gpu).tasks[0].run.cell != first[0].run.cell
    scoring[0].pipe.messages.append(Finished(first[0].run, record(first[0].run)))
    list(gpu.receive(scoring[0]))
    assert list(gpu.assign_waiting()) == []  # A trained run has been reported as started.
    assert scoring[0].tasks == [first[4]]


def test_trained_runs_do_not_accumulate(gpu):
    gpu.separate.lower_to(1)
    gpu.joint.lower_to(3)
    answer(gpu, trainer(gpu), TrainedJointly())
    assert len(gpu.trained) == 8
    while len(gpu.trained) > 3:
        (worker,) = gpu.busy
        assert not gpu.training_jointly
        finish(gpu, worker)
    assert gpu.training_jointly


def test_out_of_memory_halves_the_joint_seeds_and_requeues_all(gpu):
    seeds = trainer(gpu).tasks
    events = answer(gpu, trainer(gpu), OutOfMemory("CUDA out of memory"))
    reason = "CUDA out of memory; continuing with at most 4 jointly trained seeds"
    assert events == [Requeued(task.run, reason) for task in seeds]
    assert trainer(gpu).tasks == seeds[:4]
    assert [len(tasks) for tasks in gpu.waiting] == [
        4,
        1,
        4,
        4,
        2,
    ]  # Including those of the next cell.
    assert list(gpu.waiting)[:2] == [seeds[4:8], seeds[8:]]
    # So does a single run that is scored beside them.
    answer(gpu, trainer(gpu), TrainedJointly())
    gpu.separate.lower_to(1)
    while gpu.n_separate > 1:
        finish(gpu, next(worker for worker in gpu.busy if len(worker.tasks) == 1))
    (worker,) = [worker for worker in gpu.busy if len(worker.tasks) == 1]
    (event,) = answer(gpu, worker, OutOfMemory("CUDA out of memory"))
    assert event.reason.endswith("at most 2 jointly trained seeds")


@pytest.mark.parametrize("how", ["dies", "raises", "hangs"])
def test_seeds_of_a_failed_joint_training_are_run_separately(gpu, how, monkeypatch):
    worker, seeds = trainer(gpu), trainer(gpu).tasks
    if how == "dies":
        monkeypatch.setattr(worker.process, "exitcode", -11, raising=False)
        monkeypatch.setattr(worker.pipe, "recv", lambda: (_ for _ in ()).throw(EOFError))
        events, reason = list(gpu.receive(worker)), "the worker process died: SIGSEGV"
    elif how == "raises":
        worker.pipe.messages.append(JointTrainingFailed("ValueError: no"))
        events, reason = list(gpu.receive(worker)), "ValueError: no"
    else:
        object.__setattr__(gpu.context, "time_limit", 30.0)
        monkeypatch.setattr("os.kill", lambda pid, number: None)
        worker.started_at -= 150  # Ten seeds take turns, each with its own limit.
        assert list(gpu.end_hung()) == []
        worker.started_at -= 151
        events, reason = list(gpu.end_hung()), "not finished within the time limit of 30 s"
    assert events == [Requeued(task.run, f"{reason}; retried separately") for task in seeds]
    assert list(gpu.assign_waiting()) == [Started(task.run) for task in seeds[:4]]
    assert [worker.tasks for worker in gpu.busy] == [[task] for task in seeds[:4]]


def test_trained_runs_are_requeued_if_the_grid_stops_before_scoring(gpu):
    seeds = trainer(gpu).tasks
    answer(gpu, trainer(gpu), TrainedJointly())
    gpu.tasks.stopping = True
    stopped = [event.run for event in answer(gpu, trainer(gpu), Stopped())]
    assert len(stopped) == 10
    for worker in list(gpu.busy):
        finish(gpu, worker)
    assert list(gpu.run()) == [Requeued(task.run, "stopped") for task in seeds[4:]]


def test_a_system_that_refuses_a_worker_is_quoted(tmp_path, monkeypatch):
    def refuse():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(
        worker_process, "process_context", lambda _: SimpleNamespace(Pipe=refuse, Process=None)
    )
    with pytest.raises(ExecutorError, match=r"no worker .* Too many open files; use fewer workers"):
        worker_process.start_worker(RunContext(Store(tmp_path)))
