"""Recording the result of a task in the driver, also of one whose worker died."""

from __future__ import annotations

from collections.abc import Mapping

from hgmvae_bench.execution.output_capture import log_tail, shorten_log
from hgmvae_bench.execution.tasks import Finished, FinishedElsewhere, RunContext, Task
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store


def store_result(
    task: Task,
    record: Record | ScoreRecord,
    store: Store,
    artifacts: Mapping[str, bytes] | None = None,
) -> Finished | FinishedElsewhere:
    """Store the record of a task, unless another driver has recorded the run."""
    if isinstance(record, ScoreRecord):
        added = store.add_scores(record, task.number)
    else:
        added = store.add(record, task.number, artifacts)
    return Finished(task.run, record) if added else FinishedElsewhere(task.run)


def failure_record(task: Task, reason: str, context: RunContext) -> Record | ScoreRecord:
    """Make the record of a task whose worker died: the end of its log, then the reason."""
    import torch

    from hgmvae_bench.storage.provenance import collect_provenance

    path = context.store.log_path(task.run.key)
    log = log_tail(path)
    shorten_log(path)
    reason = f"{log}\n{reason}" if log else reason
    # The driver of a cluster need not have the device of the run.
    here = context.device if torch.cuda.is_available() else "cpu"
    provenance = {
        **collect_provenance(torch.device(here)),
        "device": context.device,
        **context.provenance,
    }
    if task.stored is not None:
        return ScoreRecord(
            key=task.run.key,
            record_sha256=task.stored.sha256,
            metrics={name: MetricValue(missing=reason) for name in task.metrics},
            provenance=provenance,
        )
    return Record.of(task.run, status="failed", error=reason, provenance=provenance)
