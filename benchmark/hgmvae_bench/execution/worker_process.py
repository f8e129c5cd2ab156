"""Start and end of the worker processes of this machine.

A worker whose driver dies exits at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from hgmvae_bench.execution.local_worker import serve
from hgmvae_bench.execution.signals import block_signals_in_children
from hgmvae_bench.execution.tasks import ExecutorError, RunContext, Task
from hgmvae_bench.utils.temporary import redirect_multiprocessing

PRELOADED = ["hgmvae_bench.execution.run", "sklearn.cluster", "sklearn.svm", "torch._dynamo"]
"""Modules that every worker needs and that take seconds to import; optimizers need the last one."""

START_DELAYS = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Seconds before each attempt to start a worker; a killed fork server needs time to exit."""

SECONDS_TO_EXIT = 3.0
"""Time that an idle worker has to exit before it is killed."""
DUMP_SECONDS = 5.0
"""Time that an aborted worker gets to write its stack to its log."""


@dataclass
class WorkerProcess:
    """A worker process with the task that it executes, or the several that it trains jointly."""

    process: BaseProcess
    pipe: Connection
    tasks: Sequence[Task] = ()
    started_at: float = 0.0
    stop_requested: bool = False

    def dismiss(self) -> None:
        """Ask the process to exit if it is idle, so that it can clean up after itself."""
        if not self.tasks:
            with suppress(OSError):
                self.pipe.send(None)

    def kill(self) -> None:
        """Kill the process, unless it is idle and exits by itself after it was dismissed."""
        if not self.tasks:
            self.process.join(SECONDS_TO_EXIT)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def abort(self) -> None:
        """End a hung process; its stack goes to its log."""
        with suppress(OSError):
            os.kill(self.process.pid or 0, signal.SIGABRT)
        self.process.join(DUMP_SECONDS)
        self.kill()


def start_worker(context: RunContext) -> WorkerProcess:
    """Start a worker process.

    Raises:
        ExecutorError: if none can be started in several attempts, or the system refuses one.
    """
    start_method = process_context(context.device)
    for seconds in START_DELAYS:
        time.sleep(seconds)
        try:
            ours, theirs = start_method.Pipe()
            arguments = dict(os.environ), serve, theirs, context
            process = start_method.Process(target=with_environment, args=arguments, daemon=True)
            # If the fork server has been killed, the next attempt starts a new one.
            with theirs, suppress(EOFError, ConnectionError), block_signals_in_children():
                process.start()
                return WorkerProcess(process, ours)
            ours.close()
        except OSError as error:  # Too many processes or open files.
            raise ExecutorError(
                f"no worker process could be started: {error}; use fewer workers, or raise the "
                "limit of processes and open files (ulimit -a)"
            ) from error
    raise ExecutorError(
        f"no worker process could be started in {len(START_DELAYS)} attempts: the fork server "
        "was killed each time (out of memory?); free memory, then repeat the command"
    )


def process_context(device: str) -> SpawnContext | ForkServerContext:
    """Return the start method of worker processes on a device.

    On a Linux CPU a fork server imports the `PRELOADED` modules once, so workers start at once and
    share that memory. It computes nothing, which makes forking safe. A CUDA driver does not survive
    a fork once it has been initialized, so workers on a GPU are spawned.
    """
    if device != "cpu" or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    redirect_multiprocessing()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def with_environment(
    environment: Mapping[str, str], function: Callable[..., None], *arguments: Any
) -> None:
    """Call a function with these environment variables, in a process of its own.

    The fork server, and every process that it forks, has the variables that were set when it was
    started. A notebook may set others later, such as the credentials of a bucket.
    """
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def cause_of_death(code: int) -> str:
    """Describe the exit code of a process that died."""
    cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return cause + (" (out of memory?)" if code == -9 else "")
