"""What is done at once on a GPU, with workers and a GPU that are acted."""

import multiprocessing
from collections import deque
from dataclasses import replace

import pytest

from hgmvae_bench.execution import local_pool
from hgmvae_bench.execution.backends import (
    INITIAL_JOINT_SEEDS,
    MAX_JOINT_SEEDS,
    LocalExecutor,
    Resources,
    open_executor,
)
from hgmvae_bench.execution.local_pool import ConcurrencyLimit, _Pool, gpu_capacity
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


def test_room_is_what_the_memory_holds_of_runs_like_the_one_measured():
    # 0.6 of the memory is for training, less 0.65 GiB of the process; 0.3 for scoring.
    assert gpu_capacity(record(peak=2 * GIB, total=80 * GIB)) == (23, 9)
    assert gpu_capacity(record(peak=20 * GIB, total=80 * GIB, together=10, scoring=GIB)) == (23, 14)
    assert gpu_capacity(record(peak=60 * GIB, total=80 * GIB)) == (0, 0)
    assert gpu_capacity(record(peak=None, total=None)) == (0, 0)
    assert gpu_capacity(record().model_copy(update={"provenance": {}})) == (0, 0)


def test_only_a_gpu_trains_seeds_together_unless_it_is_told_how_many():
    cores = available_cores()
    gpu, cpu = Resources("cuda"), Resources("cpu")
    expected = LocalExecutor(1, max(1, cores - 1), INITIAL_JOINT_SEEDS, MAX_JOINT_SEEDS)
    assert open_executor("local", gpu) == expected
    assert open_executor("local", replace(gpu, workers=6)) == LocalExecutor(6, joint_seeds=6)
    for resources in (gpu, replace(gpu, workers=6)):
        stacked = open_executor("local", replace(resources, stacked=True))
        assert stacked == replace(open_executor("local", resources), stacked=True)
    assert open_executor("local", cpu) == LocalExecutor(cores, joint_seeds=1)
    assert open_executor("local", replace(cpu, workers=6)) == LocalExecutor(6, joint_seeds=1)


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


class ActedProcess:
    pid, exitcode = 0, 0

    def kill(self): ...

    def join(self, timeout=None): ...


class ActedPipe:
    """The worker's end does what the test says."""

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
    pool = _Pool(tasks, setup, ConcurrencyLimit(1, 4), ConcurrencyLimit(1, 1))

    def start_worker(self):
        self.workers.append(local_pool._WorkerHandle(ActedProcess(), ActedPipe()))
        return self.workers[-1]

    monkeypatch.setattr(_Pool, "start_worker", start_worker)
    return pool


class ActedContext:
    """Starts no worker for the first ``failures`` times."""

    def __init__(self, failures):
        self.failures = failures
        self.Pipe, self.Process = multiprocessing.Pipe, self.process

    def process(self, **_):
        return self

    def start(self):
        self.failures -= 1
        if self.failures >= 0:
            raise (EOFError, ConnectionResetError)[self.failures % 2]


def test_a_server_of_workers_that_takes_a_while_to_die_is_waited_for(
    tiny_grid, tmp_path, monkeypatch
):
    slept = []
    monkeypatch.setattr(local_pool.time, "sleep", slept.append)
    pool = _Pool(
        Tasks([]),
        RunContext(Store(tmp_path), tmp_path),
        ConcurrencyLimit(1, 4),
        ConcurrencyLimit(1, 1),
    )
    for failures in (4, 5):
        monkeypatch.setattr(local_pool, "process_context", lambda _, f=failures: ActedContext(f))
        if failures == 4:
            assert pool.start_worker() is pool.workers[-1]
            assert sum(slept) > 4
        else:
            with pytest.raises(ExecutorError, match="no worker process could be started in 5"):
                pool.start_worker()
    assert len(pool.workers) == 1


def say(pool, worker, message):
    worker.pipe.messages.append(message)
    events = list(pool.receive(worker))
    list(pool.assign_waiting())
    return events


def finish(pool, worker, **measured):
    run = worker.tasks[0].run
    return say(pool, worker, Finished(run, record(run, **measured)))


def test_the_first_run_goes_alone_and_then_as_many_as_there_is_room_for(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    finish(pool, worker, peak=GIB, total=12 * GIB)
    assert len(pool.busy) == 2
    finish(pool, pool.busy[0], peak=GIB // 9, total=99 * GIB)
    assert len(pool.busy) == 4


def test_out_of_memory_means_fewer_side_by_side_and_the_run_again(pool):
    pool.separate.current = 3
    list(pool.assign_waiting())
    victim = pool.busy[1]
    run = victim.tasks[0].run
    (event,) = say(pool, victim, OutOfMemory("CUDA out of memory"))
    assert event == Requeued(run, "CUDA out of memory; continuing with at most 2 concurrent runs")
    assert len(pool.busy) == 2
    assert pool.waiting[0][0].run == run
    # What has been too much once is not tried again, however small the next run.
    finish(pool, pool.busy[0], peak=GIB, total=99 * GIB)
    assert len(pool.busy) == 2
    assert run in [worker.tasks[0].run for worker in pool.busy]


def test_a_run_that_finds_too_little_memory_alone_fails(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    (event,) = say(pool, worker, OutOfMemory("CUDA out of memory"))
    assert event.record.status == "failed"
    assert event.record.error == "CUDA out of memory, with no other run on the GPU"
    assert len(pool.busy) == 1


def test_scoring_that_dies_is_recorded_with_the_reason_and_its_last_words(pool):
    store, (run, *_) = pool.context.store, [task.run for task in pool.tasks]
    store.add(record(run), 0)
    store.log_path(run.key).parent.mkdir()
    store.log_path(run.key).write_text("last words")
    task = Task(run, ["sc"], store.runs()[run.key], 1)
    (event,) = pool.handle_loss([task], "the worker process died")
    assert store.runs()[run.key].metrics == event.record.metrics
    assert event.record.metrics["sc"].missing == "last words\nthe worker process died"
    # One that died after its last deed.
    assert list(pool.handle_loss([task], "the worker process died")) == [FinishedElsewhere(run)]


def test_a_worker_whose_run_was_recorded_elsewhere_takes_the_next(pool):
    list(pool.assign_waiting())
    (worker,) = pool.busy
    run = worker.tasks[0].run
    assert say(pool, worker, FinishedElsewhere(run)) == [FinishedElsewhere(run)]
    assert worker.tasks[0].run != run


@pytest.fixture
def gpu(pool):
    """The pool on a GPU whose first run has shown that there is room for 32 seeds and 4 runs."""
    pool.joint.maximum = 32
    list(pool.assign_waiting())
    assert [len(worker.tasks) for worker in pool.busy] == [1]
    finish(pool, pool.busy[0], peak=GIB, total=80 * GIB)
    return pool


def trainer(pool):
    (worker,) = [worker for worker in pool.busy if len(worker.tasks) > 1]
    return worker


def test_the_seeds_of_a_cell_are_trained_together_and_scored_beside_the_next_cell(gpu):
    first = trainer(gpu).tasks
    assert [task.run.seed for task in first] == list(range(1, 10))
    assert gpu.n_separate == 0
    assert say(gpu, trainer(gpu), TrainedJointly()) == []
    # Scored by four, in order, while all seeds of the next cell are trained.
    scoring = [worker for worker in gpu.busy if len(worker.tasks) == 1]
    assert [worker.tasks[0] for worker in scoring] == first[:4]
    assert [task.run.seed for task in trainer(gpu).tasks] == list(range(10))
    assert trainer(gpu).tasks[0].run.cell != first[0].run.cell
    scoring[0].pipe.messages.append(Finished(first[0].run, record(first[0].run)))
    list(gpu.receive(scoring[0]))
    assert list(gpu.assign_waiting()) == []  # a run that is trained has begun already
    assert scoring[0].tasks == [first[4]]


def test_trained_runs_do_not_pile_up(gpu):
    gpu.separate.lower_to(1)
    gpu.joint.lower_to(3)
    say(gpu, trainer(gpu), TrainedJointly())
    assert len(gpu.trained) == 8
    while len(gpu.trained) > 3:
        (worker,) = gpu.busy
        assert not gpu.training_jointly
        finish(gpu, worker)
    assert gpu.training_jointly


def test_out_of_memory_means_fewer_seeds_together_and_all_of_them_again(gpu):
    seeds = trainer(gpu).tasks
    events = say(gpu, trainer(gpu), OutOfMemory("CUDA out of memory"))
    reason = "CUDA out of memory; continuing with at most 4 jointly trained seeds"
    assert events == [Requeued(task.run, reason) for task in seeds]
    assert trainer(gpu).tasks == seeds[:4]
    assert [len(tasks) for tasks in gpu.waiting] == [4, 1, 4, 4, 2]  # and those of the next cell
    assert list(gpu.waiting)[:2] == [seeds[4:8], seeds[8:]]
    # A run that is scored beside them, with nothing else there, makes them fewer as well.
    say(gpu, trainer(gpu), TrainedJointly())
    gpu.separate.lower_to(1)
    while gpu.n_separate > 1:
        finish(gpu, next(worker for worker in gpu.busy if len(worker.tasks) == 1))
    (worker,) = [worker for worker in gpu.busy if len(worker.tasks) == 1]
    (event,) = say(gpu, worker, OutOfMemory("CUDA out of memory"))
    assert event.reason.endswith("at most 2 jointly trained seeds")


@pytest.mark.parametrize("how", ["dies", "raises", "hangs"])
def test_seeds_that_come_to_grief_together_are_done_each_by_itself(gpu, how, monkeypatch):
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
        worker.started_at -= 31
        monkeypatch.setattr("os.kill", lambda pid, number: None)
        events, reason = list(gpu.end_hung()), "not finished within the time limit of 30 s"
    assert events == [Requeued(task.run, f"{reason}; retried separately") for task in seeds]
    assert list(gpu.assign_waiting()) == [Started(task.run) for task in seeds[:4]]
    assert [worker.tasks for worker in gpu.busy] == [[task] for task in seeds[:4]]


def test_what_is_trained_and_not_scored_when_the_grid_stops_is_put_back(gpu):
    seeds = trainer(gpu).tasks
    say(gpu, trainer(gpu), TrainedJointly())
    gpu.tasks.stopping = True
    stopped = [event.run for event in say(gpu, trainer(gpu), Stopped())]
    assert len(stopped) == 10
    for worker in list(gpu.busy):
        finish(gpu, worker)
    assert list(gpu.run()) == [Requeued(task.run, "stopped") for task in seeds[4:]]
