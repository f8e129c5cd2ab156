"""What a driver records of a task that a worker has done, or was lost with."""

from __future__ import annotations

from collections.abc import Mapping

from hgmvae_bench.execution.output_capture import tail
from hgmvae_bench.execution.tasks import DoneElsewhere, Finished, Task
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store


def store_result(
    task: Task,
    record: Record | ScoreRecord,
    store: Store,
    artifacts: Mapping[str, bytes] | None = None,
) -> Finished | DoneElsewhere:
    """Store what a task has come to, unless another process has recorded it."""
    if isinstance(record, ScoreRecord):
        added = store.add_scores(record, task.number)
    else:
        added = store.add(record, task.number, artifacts)
    return Finished(task.run, record) if added else DoneElsewhere(task.run)


def death_record(task: Task, reason: str, store: Store, device: str) -> Record | ScoreRecord:
    """What is recorded of a task that was lost with its worker: its last words, and the reason."""
    import torch

    from hgmvae_bench.storage.provenance import collect_provenance

    words = tail(store.log_path(task.run.key))
    reason = f"{words}\n{reason}" if words else reason
    if task.stored is not None:
        return ScoreRecord(
            key=task.run.key,
            record_sha256=task.stored.sha256,
            metrics={name: MetricValue(missing=reason) for name in task.metrics},
        )
    return Record.of(
        task.run, status="failed", error=reason, provenance=collect_provenance(torch.device(device))
    )
