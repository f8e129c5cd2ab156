"""Number of runs that a GPU holds, from the memory that finished runs took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hgmvae_bench.storage.schema import Record, ScoreRecord, StageCost

TRAINING_SHARE, SCORING_SHARE = 0.6, 0.3
"""Shares of a GPU's memory for the joint training and for all other runs."""

PROCESS_GPU_BYTES = 700_000_000
"""GPU memory that a process takes in addition to what torch counts."""


@dataclass
class ConcurrencyLimit:
    """Current and maximum number of runs at a time.

    Attributes:
        current: the limit that the measurements so far allow.
        maximum: the limit that further measurements may raise it to.
    """

    current: int
    maximum: int

    def raise_to(self, capacity: int) -> None:
        """Raise the current limit to ``capacity``, up to the maximum."""
        self.current = max(self.current, min(self.maximum, capacity))

    def lower_to(self, limit: int) -> None:
        """Lower the limit permanently after an out-of-memory failure."""
        self.current = self.maximum = min(self.current, limit)


class GpuCapacity(NamedTuple):
    """Numbers of runs that fit on a GPU; 0 where nothing was measured.

    Attributes:
        joint: seeds that are trained jointly.
        separate: runs that are scored at the same time.
    """

    joint: int
    separate: int


def gpu_capacity(record: Record | ScoreRecord) -> GpuCapacity:
    """Compute how many runs like a recorded one fit on its GPU."""
    if isinstance(record, ScoreRecord):  # The costs of scoring alone are not measured.
        return GpuCapacity(0, 0)
    total, stages = record.gpu_bytes or 0, record.stage_costs
    training = stages.pop("training", StageCost())
    per_seed = (training.peak_gpu_bytes or 0) / training.joint_seeds
    scoring = max((cost.peak_gpu_bytes or 0 for cost in stages.values()), default=0)
    return GpuCapacity(
        int((TRAINING_SHARE * total - PROCESS_GPU_BYTES) / per_seed) if per_seed else 0,
        int(SCORING_SHARE * total / (scoring + PROCESS_GPU_BYTES)) if scoring else 0,
    )
