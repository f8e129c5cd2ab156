"""Stopping on Ctrl-C and SIGTERM: the first signal asks to stop, the second stops at once."""

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
    """A grid was stopped before its end; the message says how to continue.

    Attributes:
        exit_status: 128 plus the signal's number, as in shells.
    """

    label = ""  # The user asked to stop, so the message is not labelled as an error.

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


@contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM that the block may have replaced."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in processes that are started in the block, on POSIX.

    The driver receives the signals and decides about its workers. A worker that ignored the signals
    itself would still be open to those that arrive while it starts.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # multiprocessing lifts the mask when it starts the resource tracker itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signals(advice: str) -> Iterator[Callable[[], bool]]:
    """Handle Ctrl-C and SIGTERM in the block and yield a function that returns whether to stop.

    After the first signal, the block is expected to end on request. The second signal interrupts it
    with a KeyboardInterrupt.

    Args:
        advice: instructions to continue, for the message.

    Raises:
        StoppedError: when the block ends after a signal.
    """
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        # Python's streams are not reentrant; the signal may have interrupted a write to them.
        os.write(
            2,
            b"\nstopping: current runs end after their epoch; press Ctrl-C again to stop at once\n",
        )

    with preserve_signal_handlers():
        for number in SIGNALS:
            signal.signal(number, handle)
        try:
            yield lambda: bool(received)
        except KeyboardInterrupt as error:
            raise StoppedError(f"stopped at once; {advice}", received[0]) from error
    if received:
        raise StoppedError(f"stopped; {advice}", received[0])
