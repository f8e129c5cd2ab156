"""What a run writes to its terminal, kept in a file: warnings, prints, the stack of a crash."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAIL_CHARACTERS = 4000


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """Append everything that this process writes to its output and error streams to a file.

    That of C libraries counts too, and the stack of a process that is made to abort.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(file, number)
        faulthandler.enable(2)
        yield
    finally:
        for stream in streams:
            stream.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(file)


def tail(path: Path) -> str:
    """The end of a log; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8 * _TAIL_CHARACTERS))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # The last of a crash's words is a list of every compiled module, longer than all the rest.
    lines = [line for line in text.splitlines() if not line.startswith("Extension modules: ")]
    return "\n".join(lines)[-_TAIL_CHARACTERS:].strip()
