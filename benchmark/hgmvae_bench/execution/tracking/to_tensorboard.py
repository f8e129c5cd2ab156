"""Tracking in TensorBoard: a folder of event files for each run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from hgmvae_bench.grid import Run, flatten
from hgmvae_bench.storage.schema import Record, ScoreRecord


class TensorBoardTracker:
    """Writes loss terms as scalars, metrics with the settings as hyperparameters, tags as text.

    Args:
        root: folder to give to ``tensorboard --logdir``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writers: dict[str, SummaryWriter] = {}

    def started(self, run: Run) -> None:
        """Open the run's folder."""
        if run.key not in self._writers:
            self._writers[run.key] = SummaryWriter(self._root / run.key)

    def epoch_ended(self, run: Run, epoch: int, terms: Mapping[str, float]) -> None:
        """Write the loss terms at their epoch."""
        writer = self._writers[run.key]
        for name, value in terms.items():
            writer.add_scalar(f"training/{name}", value, epoch)
        writer.flush()

    def finished(self, run: Run, record: Record | ScoreRecord) -> None:
        """Write the metrics with the settings and the provenance."""
        writer = self._writers.pop(run.key)
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flatten({**run.cell.settings, "seed": run.seed}).items()
        }
        values = {name: m.value for name, m in record.metrics.items() if m.value is not None}
        epochs = run.cell.training.epochs
        # The run's own folder; by default hyperparameters go to a folder named after the time.
        writer.add_hparams(
            settings,
            {f"metrics/{name}": value for name, value in values.items()},
            run_name=".",
            global_step=epochs,
        )
        tags = {
            "run_key": run.key,
            **flatten(record.provenance, "provenance."),
            **{f"missing.{name}": m.missing for name, m in record.metrics.items() if m.missing},
        }
        if isinstance(record, Record):
            tags |= {"status": record.status, "error": record.error or ""}
        for name, value in tags.items():
            writer.add_text(name, str(value), epochs)
        writer.close()

    def close(self) -> None:
        """Close the files of interrupted runs."""
        for writer in self._writers.values():
            writer.close()
