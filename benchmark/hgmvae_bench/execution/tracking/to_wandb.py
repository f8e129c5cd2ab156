"""Tracking in Weights & Biases: a W&B run for each run of the grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from hgmvae_bench.grid import Run, flatten
from hgmvae_bench.storage.schema import Record, ScoreRecord


class WandbTracker:
    """Logs loss terms by epoch, settings as the configuration, metrics as the summary.

    The environment configures W&B as usual: ``WANDB_API_KEY``, ``WANDB_MODE=offline``.

    Args:
        project: name of the project.
        group: group of the grid's runs.
        root: folder for W&B's files; W&B's own default if None.
    """

    def __init__(self, project: str, group: str, root: Path | None) -> None:
        self._project, self._group, self._root = project, group, root
        self._runs: dict[str, Any] = {}
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)

    def started(self, run: Run) -> None:
        """Open a W&B run, which continues an earlier one of the same key."""
        if run.key in self._runs:
            return
        self._runs[run.key] = wandb.init(
            project=self._project,
            group=self._group,
            name=run.key,
            id=run.key,
            resume="allow",
            config=flatten({**run.cell.settings, "seed": run.seed}),
            dir=None if self._root is None else str(self._root),
            reinit="create_new",  # several runs of the grid are open at the same time
            settings=wandb.Settings(console="off"),  # the driver's output belongs to all runs
        )

    def epoch_ended(self, run: Run, epoch: int, terms: Mapping[str, float]) -> None:
        """Log the loss terms at their epoch."""
        self._runs[run.key].log({f"training/{n}": v for n, v in terms.items()}, step=epoch)

    def finished(self, run: Run, record: Record | ScoreRecord) -> None:
        """Write metrics and provenance to the summary and close the W&B run."""
        logged = self._runs.pop(run.key)
        summary: dict[str, Any] = {}
        for name, metric in record.metrics.items():
            if metric.value is not None:
                summary[f"metrics/{name}"] = metric.value
            else:
                summary[f"missing/{name}"] = metric.missing
        if isinstance(record, Record):
            summary |= {"status": record.status, "error": record.error or ""}
        logged.summary.update({**summary, **flatten(record.provenance, "provenance.")})
        failed = isinstance(record, Record) and record.status != "complete"
        logged.finish(exit_code=int(failed))

    def close(self) -> None:
        """Close the W&B runs of interrupted runs."""
        for logged in self._runs.values():
            logged.finish(exit_code=255)
