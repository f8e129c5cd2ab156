"""Several processes at one results folder: who does which run.

::

    leases/<owner>.alive               rewritten every few seconds by a process that runs a grid
    leases/<record name>.<number>      whose the run is that will write this record

A claim holds while its owner lives. Whether an owner of this machine lives, the operating system
knows; one elsewhere counts as dead when its file has not changed for a minute of this process's own
monotonic clock, so that no clock that is wrong or jumps, here or there, frees or keeps a run.

A dead owner's claim is not removed but outnumbered: whoever makes the file of the next number,
which only one can, has the run. Leases go when their record is there and nobody needs them.
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

from hgmvae_bench.utils.atomic_files import Files

FOLDER = "leases"
ALIVE = ".alive"


class Leases:
    """The runs of a results folder that this process has taken.

    Used as a context manager: while the block lasts, the process counts as alive.

    Args:
        files: the folder's.
        owner: a name that no other process has.
        heartbeat: seconds between signs of life.
        expiry: seconds without a sign after which a process elsewhere counts as dead.
    """

    def __init__(
        self, files: Files, owner: str, *, heartbeat: float = 5.0, expiry: float = 60.0
    ) -> None:
        self.owner = owner
        self._files = files
        self._heartbeat, self._expiry = heartbeat, expiry
        self._seen: dict[str, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._give_sign(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self._files.remove(f"{FOLDER}/{self.owner}{ALIVE}")

    def acquire(self, name: str) -> bool:
        """Claim the run that will write the record called ``name``; False if another has it.

        Raises:
            OSError: if leases cannot be read or written.
        """
        number = self._next_number(name)
        if number:
            try:
                owner = self._files.read(f"{FOLDER}/{name}.{number - 1}").decode()
            except FileNotFoundError:  # its record has just been written
                return False
            if owner == self.owner:
                return True
            if self.is_alive(owner):
                return False
        return self._files.create(f"{FOLDER}/{name}.{number}", self.owner.encode())

    def release(self, name: str) -> None:
        """Remove the leases of a record that is there."""
        with suppress(OSError):
            for number in reversed(range(self._next_number(name))):
                self._files.remove(f"{FOLDER}/{name}.{number}")

    def release_recorded(self, recorded: Callable[[str], bool]) -> None:
        """Remove the leases of every record that is there; who wrote it may have died since."""
        names = {name.rpartition(".")[0] for name, _ in self._files.scan(FOLDER)}
        for name in filter(recorded, names):
            self.release(name)

    def live_owners(self) -> set[str]:
        """Owners that live; the signs that dead ones left are removed."""
        owners = {
            name.removesuffix(ALIVE) for name, _ in self._files.scan(FOLDER) if name.endswith(ALIVE)
        }
        living = {owner for owner in owners if owner == self.owner or self.is_alive(owner)}
        for owner in owners - living:
            with suppress(OSError):
                self._files.remove(f"{FOLDER}/{owner}{ALIVE}")
        return living

    def is_alive(self, owner: str) -> bool:
        """Whether a process that takes leases is alive, as far as can be known from here."""
        path = f"{FOLDER}/{owner}{ALIVE}"
        version = self._files.version(path)
        if version is None:
            return False
        with suppress(OSError, ValueError, KeyError, TypeError):
            sign = json.loads(self._files.read(path))
            if sign["machine"] is not None and sign["machine"] == _machine():
                return bool(_process_start(int(sign["pid"])) == sign["start"])
        seen, since = self._seen.get(owner, ("", 0.0))
        if seen != version:
            self._seen[owner] = version, time.monotonic()
            return True
        return time.monotonic() - since < self._expiry

    def _next_number(self, name: str) -> int:
        number = 0
        while self._files.version(f"{FOLDER}/{name}.{number}") is not None:
            number += 1
        return number

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._heartbeat):
            count += 1
            # On a full disk the file of before stays, and on this machine that is enough.
            with suppress(OSError):
                self._give_sign(count)

    def _give_sign(self, count: int) -> None:
        pid = os.getpid()
        sign = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": pid,
            "start": _process_start(pid),
            "count": count,
        }
        self._files.write(f"{FOLDER}/{self.owner}{ALIVE}", json.dumps(sign).encode())


def new_owner_id() -> str:
    """A name that no other process has."""
    return uuid.uuid4().hex[:16]


@functools.cache
def _machine() -> str | None:
    """What processes have in common that can see each other; None where that cannot be known.

    A container shares its host's boot, but numbers its processes itself.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """When a process began, in ticks since boot: a number is used again, with another start."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = state.rpartition(")")[2].split()
    # A zombie has ended, and only waits for its parent to notice.
    return None if fields[0] in "ZX" else fields[19]
