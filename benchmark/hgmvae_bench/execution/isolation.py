"""Calls in a separate process, for code of plug-ins that may crash, exit, hang or print."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TypeVar

import torch

from hgmvae_bench.execution.process_state import restored_process_state
from hgmvae_bench.execution.signals import block_signals_in_children
from hgmvae_bench.execution.worker_process import cause_of_death, process_context, with_environment
from hgmvae_bench.plugins import local_files
from hgmvae_bench.plugins.protocols import PluginError
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import shorten

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_REASON_LENGTH = 500
"""Characters of an error's message that leave the process."""


class NoResult(NamedTuple):
    """Replacement for the result of a call that raised an error, ended its process or hung.

    Attributes:
        reason: what happened, in one clause.
    """

    reason: str


def is_own(model: str) -> bool:
    """Whether a model comes with the suite, so that it needs no process of its own."""
    return MODELS.entry(model.partition(":")[0]).owner == "hgmvae-bench"


def map_isolated(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    seconds: float,
    device: str = "cpu",
) -> Iterator[Result | NoResult]:
    """Apply a function to items in another process, and yield the results in order.

    A new process continues after an item that ends or blocks the process. It has this process's
    number of torch threads. What the calls print is discarded.

    Args:
        function: a function of a module; its results can be pickled.
        items: its arguments, which can be pickled.
        seconds: maximum time of a call; the first one includes the start of the process.
        device: ``cpu`` or ``cuda``, where the function computes.

    Raises:
        PluginError: if the function raises one, or a plug-in cannot be loaded.
    """
    waiting = deque(items)
    while waiting:
        with _process(function, list(waiting), device) as (process, pipe):
            while waiting:
                waiting.popleft()
                try:
                    answer = pipe.recv() if pipe.poll(seconds) else None
                except (EOFError, OSError):
                    process.join()
                    yield NoResult(f"the process died: {cause_of_death(process.exitcode or 0)}")
                    break
                if answer is None:
                    yield NoResult(f"not finished within {seconds:g} s")
                    break
                if isinstance(answer, PluginError):
                    raise answer
                yield answer[0] if isinstance(answer, tuple) else NoResult(answer)


@contextmanager
def _process(
    function: Callable[[Item], Result], items: list[Item], device: str
) -> Iterator[tuple[BaseProcess, Connection]]:
    """Start a process that applies a function and sends the results; kill it at the end."""
    context = process_context(device)
    ours, theirs = context.Pipe(duplex=False)
    call = torch.get_num_threads(), local_files.active_plugins(), function, items
    arguments = dict(os.environ), _apply, theirs, *call
    process = context.Process(target=with_environment, args=arguments, daemon=True)
    with theirs, block_signals_in_children():
        process.start()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _apply(
    pipe: Connection,
    threads: int,
    plugins: tuple[local_files.LocalPlugin, ...],
    function: Callable[[Item], Result],
    items: list[Item],
) -> None:
    """Send for each item a tuple with the result, the text of an error, or a `PluginError`."""
    torch.set_num_threads(threads)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        local_files.activate_plugins(plugins)
        for item in items:
            with restored_process_state():
                try:
                    pipe.send((function(item),))
                except PluginError:
                    raise
                except Exception as error:
                    pipe.send(_in_one_line(f"{type(error).__name__}: {error}"))
    except UserError as error:
        pipe.send(PluginError(shorten(str(error), MAX_REASON_LENGTH)))


def _in_one_line(reason: str) -> str:
    return shorten(" ".join(reason[: 10 * MAX_REASON_LENGTH].split()), MAX_REASON_LENGTH)
