"""Capture of a run's terminal output: prints, warnings, the stack of a crash."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAIL_CHARACTERS = 4000

MAX_LOG_BYTES = 4_000_000
"""Size from which a log is shortened, during and after its run."""

KEPT_LOG_BYTES = 1_000_000
"""Size of the beginning and of the end that a shortened log keeps."""

CHECK_SECONDS = 0.05
"""Time between two checks of a log's size; a run that prints 1 GB/s adds 50 MB meanwhile."""

_OMITTED = re.compile(rb"\n\[at least ([0-9,]{1,26}) bytes omitted\]\n")
_OMITTED_LENGTH = 53


@contextmanager
def captured_output(path: Path) -> Iterator[None]:
    """Append everything that this process writes to stdout and stderr to a file.

    The file descriptors are redirected, so the output of C libraries and the stack of an aborted
    process are captured too. A log above `MAX_LOG_BYTES` is shortened meanwhile, so that a run
    that prints without end does not fill the disk.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    streams = (sys.stdout, sys.stderr)
    saved = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(file, number)
        faulthandler.enable(2)
        with _kept_short(path):
            yield
    finally:
        for stream in streams:
            stream.flush()
        for number, original in zip((1, 2), saved, strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(file)
        shorten_log(path)


@contextmanager
def _kept_short(path: Path) -> Iterator[None]:
    """Shorten a log whenever it is too long, in a thread, until the block ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(CHECK_SECONDS):
            shorten_log(path)

    thread = threading.Thread(target=watch, name="log size", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def shorten_log(path: Path) -> None:
    """Replace the middle of a log above `MAX_LOG_BYTES` by a line; ignored if it fails.

    The file stays the same one, so that processes may append to it meanwhile. What they append
    while the file is shortened is omitted without being counted.
    """
    with suppress(OSError):
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(KEPT_LOG_BYTES)
            earlier = _OMITTED.match(file.read(_OMITTED_LENGTH))
            file.seek(-KEPT_LOG_BYTES, os.SEEK_END)
            tail = file.read(KEPT_LOG_BYTES)
            omitted = file.seek(0, os.SEEK_END) - KEPT_LOG_BYTES - len(tail)
            if earlier:
                omitted += int(earlier[1].replace(b",", b"")) - len(earlier[0])
            file.seek(KEPT_LOG_BYTES)
            file.write(f"\n[at least {omitted:,} bytes omitted]\n".encode() + tail)
            file.truncate()


def log_tail(path: Path) -> str:
    """Return the last 4,000 characters of a log; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8 * _TAIL_CHARACTERS))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # faulthandler ends a dump with the list of all compiled modules, longer than the dump itself.
    lines = [line for line in text.splitlines() if not line.startswith("Extension modules: ")]
    return "\n".join(lines)[-_TAIL_CHARACTERS:].strip()
