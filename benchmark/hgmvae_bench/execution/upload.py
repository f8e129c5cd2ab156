"""A reporter that sends what is recorded to where the results lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hgmvae_bench.execution.tasks import Event, Finished
from hgmvae_bench.storage.remote import RemoteError, RemoteResults

if TYPE_CHECKING:
    from hgmvae_bench.execution.runner import Plan


class PushingReporter:
    """Sends each run when it is recorded; what cannot be sent waits for the end."""

    def __init__(self, remote: RemoteResults, warn: Callable[[str], None]) -> None:
        self._remote, self._warn, self._warned = remote, warn, False

    def planned(self, plan: Plan) -> None:
        """Nothing to send yet."""

    def happened(self, event: Event) -> None:
        """Send the run that has been recorded."""
        if not isinstance(event, Finished):
            return
        try:
            self._remote.push_records()
        except RemoteError as error:
            if not self._warned:
                self._warn(str(error))
            self._warned = True
