"""What the driver and the nodes of a Ray cluster tell each other while runs are under way.

The desk is an actor on the driver's node. It holds what nodes have told until the driver takes it,
and keeps their checkpoints in the driver's results folder, where a run that is done again on
another node, or by another start, finds them.

What a run writes to its terminal stays on its node until the run ends, or the driver asks for the
last words of one that died. Nothing here imports torch: the actor is to start quickly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from hgmvae_bench.execution.tasks import Event
from hgmvae_bench.utils.atomic_files import LocalFiles


class News(NamedTuple):
    """What a node has told.

    Attributes:
        event: of a run that is under way.
        node: Ray's id of the node where it is.
    """

    event: Event
    node: str


class Desk:
    """The driver's end of the talk with the nodes.

    Args:
        results: the driver's results folder.
        owner: name of the driver, under which checkpoints are written.
    """

    def __init__(self, results: Path, owner: str) -> None:
        self._files = LocalFiles(results, owner)
        self._news: list[News] = []
        self._stopping = False

    def tell(self, event: Event, node: str) -> bool:
        """Leave an event; the answer is whether the run is to stop."""
        self._news.append(News(event, node))
        return self._stopping

    def take(self) -> list[News]:
        """Everything told since the last time, in order."""
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        """Answer from now on that runs are to stop."""
        self._stopping = True

    def keep(self, path: str, content: bytes) -> None:
        """Write a file of the results folder.

        Raises:
            OSError: if it cannot be written.
        """
        self._files.write(path, content)

    def kept(self, path: str) -> bytes:
        """Content of a file of the results folder; empty if it cannot be read."""
        try:
            return self._files.read(path)
        except OSError:
            return b""


def node_folder(results: Path) -> Path:
    """Where a node keeps what belongs to a results folder of the driver."""
    origin = hashlib.sha256(str(results.absolute()).encode()).hexdigest()
    return user_cache_path("hgmvae-bench") / "nodes" / origin[:16]


def taken_log(results: Path, key: str) -> bytes:
    """What a run on this node has written to its terminal; it is removed from here."""
    log = node_folder(results) / "logs" / f"{key}.log"
    try:
        content = log.read_bytes()
        log.unlink()
    except OSError:
        return b""
    return content
