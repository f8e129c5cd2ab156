"""Leases that keep two processes from working on the same run of a results folder.

::

    leases/<owner>.alive               heartbeat, rewritten every few seconds by a running process
    leases/<record name>.<number>      owner of the lease on the run that writes this record

A lease is valid as long as its owner is alive. The operating system shows whether an owner on this
machine is alive. An owner on another machine counts as dead if its heartbeat file has not changed
for a minute. The minute is measured by the monotonic clock of the process that checks, so wrong or
jumping clocks have no effect.

A dead owner's lease is not removed. Another process takes the run over by creating the file with
the next number, which only one process can do. Leases are removed once their record is written.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from hgmvae_bench.utils.atomic_files import LocalFiles

FOLDER = "leases"
ALIVE = ".alive"


class Leases:
    """Leases of this process on runs of a results folder.

    As a context manager, it keeps the process's heartbeat going for the duration of the block.

    Args:
        files: files of the results folder.
        owner: unique id of this process, see `new_owner_id`.
        heartbeat: seconds between heartbeats.
        expiry: seconds without a heartbeat after which a process on another machine counts as dead.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        files: LocalFiles,
        owner: str,
        *,
        heartbeat: float = 5.0,
        expiry: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner
        self._files = files
        self._heartbeat, self._expiry, self._clock = heartbeat, expiry, clock
        self._last_seen: dict[str, tuple[str, float]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._write_heartbeat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        with suppress(OSError):
            self._files.remove(f"{FOLDER}/{self.owner}{ALIVE}")

    def acquire(self, name: str) -> bool:
        """Acquire the lease on the run that writes the record file ``name``.

        Returns:
            Whether this process holds the lease; False if another live process does.

        Raises:
            OSError: if leases cannot be read or written.
        """
        number = self._next_number(name)
        if number:
            try:
                owner = self._files.read(f"{FOLDER}/{name}.{number - 1}").decode()
            except FileNotFoundError:  # Released, since its record has just been written.
                return False
            if owner == self.owner:
                return True
            if self.is_alive(owner):
                return False
        return self._files.create(f"{FOLDER}/{name}.{number}", self.owner.encode())

    def release(self, name: str) -> None:
        """Remove the leases on a record that has been written."""
        with suppress(OSError):
            for number in reversed(range(self._next_number(name))):
                self._files.remove(f"{FOLDER}/{name}.{number}")

    def release_recorded(self, is_recorded: Callable[[str], bool]) -> None:
        """Remove the leases on every written record, whoever holds them.

        A process that dies after it has written a record leaves its lease behind.
        """
        names = {name.rpartition(".")[0] for name, _ in self._files.scan(FOLDER)}
        for name in filter(is_recorded, names):
            self.release(name)

    def live_owners(self) -> set[str]:
        """Ids of live owners; the heartbeat files of dead owners are removed."""
        owners = {
            name.removesuffix(ALIVE) for name, _ in self._files.scan(FOLDER) if name.endswith(ALIVE)
        }
        living = {owner for owner in owners if owner == self.owner or self.is_alive(owner)}
        for owner in owners - living:
            with suppress(OSError):
                self._files.remove(f"{FOLDER}/{owner}{ALIVE}")
        return living

    def is_alive(self, owner: str) -> bool:
        """Whether a process is alive, as far as this machine can determine."""
        path = f"{FOLDER}/{owner}{ALIVE}"
        version = self._files.version(path)
        if version is None:
            return False
        with suppress(OSError, ValueError, KeyError, TypeError):
            heartbeat = json.loads(self._files.read(path))
            if heartbeat["machine"] is not None and heartbeat["machine"] == _machine():
                return bool(_process_start(int(heartbeat["pid"])) == heartbeat["start"])
        last_version, seen_at = self._last_seen.get(owner, ("", 0.0))
        if last_version != version:
            self._last_seen[owner] = version, self._clock()
            return True
        return self._clock() - seen_at < self._expiry

    def _next_number(self, name: str) -> int:
        number = 0
        while self._files.version(f"{FOLDER}/{name}.{number}") is not None:
            number += 1
        return number

    def _keep_alive(self) -> None:
        count = 0
        while not self._stopping.wait(self._heartbeat):
            count += 1
            # On a full disk the previous file stays, which is enough for processes on this machine.
            with suppress(OSError):
                self._write_heartbeat(count)

    def _write_heartbeat(self, count: int) -> None:
        pid = os.getpid()
        heartbeat = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": pid,
            "start": _process_start(pid),
            "count": count,
        }
        self._files.write(f"{FOLDER}/{self.owner}{ALIVE}", json.dumps(heartbeat).encode())


def new_owner_id() -> str:
    """Unique id for this process."""
    return uuid.uuid4().hex[:16]


@functools.cache
def _machine() -> str | None:
    """Id of the boot and PID namespace, in which a PID is unique; None where it is unknown.

    A container shares its host's boot id but has a PID namespace of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Start time of a process in ticks since boot, or None if it has ended.

    PIDs are reused, so that only both together identify a process.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = state.rpartition(")")[2].split()
    # A zombie has ended and waits for its parent to collect it.
    return None if fields[0] in "ZX" else fields[19]
