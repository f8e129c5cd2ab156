"""Reporter that uploads each run to a remote results folder when it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hgmvae_bench.execution.tasks import Event, Finished
from hgmvae_bench.storage.remote import RemoteError, RemoteResults

if TYPE_CHECKING:
    from hgmvae_bench.execution.plan import ExecutionPlan


class UploadReporter:
    """Uploads each run when it is recorded; a failed upload is repeated at the end.

    Args:
        remote: the remote results folder.
        warn: called with a message when the first upload fails.
    """

    def __init__(self, remote: RemoteResults, warn: Callable[[str], None]) -> None:
        self._remote, self._warn, self._warned = remote, warn, False

    def on_plan(self, plan: ExecutionPlan) -> None:
        """Do nothing: there is nothing to upload yet."""

    def on_event(self, event: Event) -> None:
        """Upload the run if the event is its record."""
        if not isinstance(event, Finished):
            return
        try:
            self._remote.push_records()
        except RemoteError as error:
            if not self._warned:
                self._warn(str(error))
            self._warned = True
