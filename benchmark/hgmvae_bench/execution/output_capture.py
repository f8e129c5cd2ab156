"""Capturing what a run writes to its terminal: prints, warnings, the stack of a crash."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgmvae_bench.utils.atomic_files import write_atomically

_TAIL_CHARACTERS = 4000

MAX_LOG_BYTES = 4_000_000
"""Size from which a log is shortened at the end of its run."""

KEPT_LOG_BYTES = 1_000_000
"""Size of the beginning and of the end that a shortened log keeps."""


@contextmanager
def captured_output(path: Path) -> Iterator[None]:
    """Append everything that this process writes to stdout and stderr to a file.

    The file descriptors are redirected, so the output of C libraries and the stack of an aborted
    process are captured too. At the end, a log above `MAX_LOG_BYTES` is shortened.

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
        yield
    finally:
        for stream in streams:
            stream.flush()
        for number, original in zip((1, 2), saved, strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(file)
        shorten_log(path)


def shorten_log(path: Path) -> None:
    """Replace the middle of a log above `MAX_LOG_BYTES` by a line; ignored if it fails."""
    with suppress(OSError):
        if (size := path.stat().st_size) <= MAX_LOG_BYTES:
            return
        with path.open("rb") as file:
            head = file.read(KEPT_LOG_BYTES)
            file.seek(size - KEPT_LOG_BYTES)
            tail = file.read(KEPT_LOG_BYTES)
        omitted = size - len(head) - len(tail)
        write_atomically(path, head + f"\n[{omitted:,} bytes omitted]\n".encode() + tail)


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
