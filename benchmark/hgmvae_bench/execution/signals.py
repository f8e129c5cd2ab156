"""Ctrl-C and SIGTERM: the first asks to stop, the second stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from hgmvae_bench.utils.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(UserError):
    """A grid that was stopped before its end; the message says how to go on.

    Attributes:
        exit_status: 128 and the signal's number, as shells have it.
    """

    label = ""  # It was asked for.

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Whatever the block sets to be done on Ctrl-C and SIGTERM, what was set before holds after."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C or SIGTERM.

    Their driver, which does, decides about them. Ignoring the signals themselves is too late for
    those that come while they start. Windows has no such masks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Where multiprocessing starts this one itself, it lifts the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signals(advice: str) -> Iterator[Callable[[], bool]]:
    """Heed Ctrl-C and SIGTERM until the block ends; what it gives tells whether to stop.

    The first signal only asks, and the block is expected to come to an end; the second breaks it
    off with a KeyboardInterrupt.

    Args:
        advice: how to go on later.

    Raises:
        StoppedError: after the block, if it was asked to stop.
    """
    heard: list[int] = []

    def heed(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt
        # Not through Python's streams, in whose midst the signal may have come.
        os.write(2, b"\nstopping: runs under way end with their epoch; Ctrl-C stops at once\n")

    before = {number: signal.signal(number, heed) for number in SIGNALS}
    try:
        yield lambda: bool(heard)
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped at once; {advice}", heard[0]) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise StoppedError(f"stopped; {advice}", heard[0])
