"""Measuring the time and the memory of the stages of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class ResourceMeter:
    """Measures the stages of a run, one after the other.

    A quantity that this machine cannot measure is None.

    Attributes:
        device: device of the run.
        stages: cost of each stage by name: ``seconds``; ``peak_bytes`` of the process;
            ``peak_gpu_bytes`` that torch reserved. `per_run_share` describes those of a joint
            training.
    """

    device: torch.device
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each stage."""
        return {name: stage["seconds"] for name, stage in self.stages.items()}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the block as one stage."""
        on_gpu = self.device.type == "cuda"
        peaks_are_of_the_stage = _reset_peak()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = {
                "seconds": time.perf_counter() - start,
                "peak_bytes": _peak_bytes() if peaks_are_of_the_stage else None,
                "peak_gpu_bytes": torch.cuda.max_memory_reserved(self.device) if on_gpu else None,
            }


def per_run_share(stage: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return the share of one run in a stage that ``n`` runs went through jointly.

    The time is divided by ``n``. The peaks stay those of all runs, and ``together`` is ``n``.
    """
    return {**stage, "seconds": stage["seconds"] / n, "together": n}


def _reset_peak() -> bool:
    """Reset the kernel's peak memory of this process; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
