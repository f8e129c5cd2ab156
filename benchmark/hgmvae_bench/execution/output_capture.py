"""Capturing what a run writes to its terminal: prints, warnings, the stack of a crash."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAIL_CHARACTERS = 4000


@contextmanager
def captured_output(path: Path) -> Iterator[None]:
    """Append everything that this process writes to stdout and stderr to a file.

    The file descriptors are redirected, so the output of C libraries and the stack of an aborted
    process are captured too.

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
