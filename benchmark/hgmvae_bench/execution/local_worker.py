"""A worker process: it does tasks from a pipe, and tells its driver how it gets on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from hgmvae_bench.execution.output_capture import captured
from hgmvae_bench.execution.signals import SIGNALS
from hgmvae_bench.execution.tasks import DoneElsewhere, EpochEnded, Finished, Setup
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import activate_plugins
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.errors import StopRequestedError, UserError


@dataclass(frozen=True)
class Fault:
    """Sent in place of an exception, which need not survive the way between processes."""

    reason: str


@dataclass(frozen=True)
class OutOfMemory:
    """The GPU's memory is too small for all that runs on it."""

    reason: str


@dataclass(frozen=True)
class Trained:
    """Several seeds are trained, and in their checkpoints."""


@dataclass(frozen=True)
class Apart:
    """Several seeds cannot be trained together."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Sent to a worker: stop at the end of the epoch. Sent back: it has."""


def _end_with_driver() -> None:
    """End this process as soon as the one that started it does."""
    driver = multiprocessing.parent_process()
    assert driver is not None  # noqa: S101
    wait([driver.sentinel])
    os._exit(1)


def serve(pipe: Connection, setup: Setup) -> None:
    """A worker's life: do tasks from the pipe until there are none."""
    # Signals reach all processes of a terminal or a job; the driver decides about its workers.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    import torch

    from hgmvae_bench.data.catalogue import resolve_dataset
    from hgmvae_bench.execution.run import (
        RecordedElsewhereError,
        TogetherError,
        perform,
        train_together,
    )
    from hgmvae_bench.utils.threads import limit_threads

    activate_plugins(setup.local_plugins)
    limit_threads(setup.threads)
    device = torch.device(setup.device)
    store = setup.store
    data: dict[tuple[str, int], Any] = {}
    while isinstance(tasks := pipe.recv(), Sequence):
        runs = [task.run for task in tasks]
        run, tell = runs[0], _epoch_teller(pipe, runs)
        message: Finished | DoneElsewhere | Trained
        try:
            with captured(store.log_path(run.key)):
                wanted = run.cell.dataset, run.cell.image_size
                if wanted not in data:
                    data[wanted] = resolve_dataset(wanted[0]).load(
                        setup.data_root, image_size=wanted[1]
                    )
                if len(runs) > 1:
                    _refer(runs, store)
                    train_together(
                        runs,
                        data[wanted],
                        store=store,
                        device=device,
                        stacked=setup.stacked,
                        on_epoch=tell,
                    )
                    message = Trained()
                else:
                    record = perform(
                        tasks[0],
                        data[wanted],
                        store=store,
                        device=device,
                        weights=setup.weights,
                        context=setup.context,
                        on_epoch=partial(tell, 0),
                    )
                    message = Finished(run, record)
        except RecordedElsewhereError:
            message = DoneElsewhere(run)
        except StopRequestedError:
            pipe.send(Stop())
            return
        except torch.OutOfMemoryError as error:
            pipe.send(OutOfMemory(str(error).splitlines()[0]))
            return
        except TogetherError as error:
            pipe.send(Apart(str(error)))
            return
        except Exception as error:
            pipe.send(Fault(str(error) if isinstance(error, UserError) else repr(error)))
            return
        if device.type == "cuda":
            torch.cuda.empty_cache()  # What this process does not use, others can.
        pipe.send(message)


def _refer(runs: Sequence[Run], store: Store) -> None:
    """Say in the logs of seeds that are trained together which of them has what they print."""
    for run in runs[1:]:
        with store.log_path(run.key).open("a", encoding="utf-8") as log:
            log.write(f"trained together with {runs[0].key}, whose log is of both\n")


def _epoch_teller(
    pipe: Connection, runs: Sequence[Run]
) -> Callable[[int, int, Mapping[str, float]], None]:
    def tell(index: int, epoch: int, terms: Mapping[str, float]) -> None:
        pipe.send(EpochEnded(runs[index], epoch, terms))
        if pipe.poll():  # All that a busy worker is ever sent.
            raise StopRequestedError

    return tell
