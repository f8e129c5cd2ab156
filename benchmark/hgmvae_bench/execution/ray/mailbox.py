"""Messages between the driver and the nodes of a Ray cluster during the runs.

The mailbox is an actor on the driver's node. It holds the nodes' events until the driver collects
them, and keeps their checkpoints in the driver's results folder, where a repeated run on another
node, or of a later start, finds them.

The log of a run stays on its node until the run ends, or until the driver asks for the log of a run
that died. Nothing here imports torch, so that the actor starts quickly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from hgmvae_bench.execution.tasks import Event
from hgmvae_bench.utils.atomic_files import LocalFiles


class MailboxMessage(NamedTuple):
    """An event that a node has sent.

    Attributes:
        event: the event.
        node: Ray's id of the node.
    """

    event: Event
    node: str


class Mailbox:
    """The driver's end of the communication with the nodes.

    Args:
        results: the driver's results folder.
        owner: name of the driver, under which checkpoints are written.
    """

    def __init__(self, results: Path, owner: str) -> None:
        self._files = LocalFiles(results, owner)
        self._messages: list[MailboxMessage] = []
        self._stopping = False

    def post(self, event: Event, node: str) -> bool:
        """Leave an event for the driver; return whether the run has to stop."""
        self._messages.append(MailboxMessage(event, node))
        return self._stopping

    def collect(self) -> list[MailboxMessage]:
        """Return the messages since the last call, in order."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        """Have runs stop when they post their next event."""
        self._stopping = True

    def write_file(self, path: str, content: bytes) -> None:
        """Write a file of the results folder.

        Raises:
            OSError: if it cannot be written.
        """
        self._files.write(path, content)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the results folder; empty if it cannot be read."""
        try:
            return self._files.read(path)
        except OSError:
            return b""


def node_folder(results: Path) -> Path:
    """Return the node's folder for the cache and the logs of a results folder."""
    origin = hashlib.sha256(str(results.absolute()).encode()).hexdigest()
    return user_cache_path("hgmvae-bench") / "nodes" / origin[:16]


def pop_log(results: Path, key: str) -> bytes:
    """Return the log of a run on this node and remove it; empty if there is none."""
    log = node_folder(results) / "logs" / f"{key}.log"
    try:
        content = log.read_bytes()
        log.unlink()
    except OSError:
        return b""
    return content
