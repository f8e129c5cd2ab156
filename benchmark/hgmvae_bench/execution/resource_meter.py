"""Measuring what the stages of a run cost: time, memory, and energy where available."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")


@dataclass
class ResourceMeter:
    """Measures the stages of a run, one after the other.

    A quantity that this machine cannot measure is None. Energy is that of whole processor packages
    and of the whole GPU, so with concurrent runs it is not that of a single run.

    Attributes:
        device: device of the run.
        stages: cost of each stage by name: ``seconds``; ``peak_bytes`` of the process;
            ``peak_gpu_bytes`` that torch reserved; ``cpu_joules`` and ``gpu_joules``. Those of a
            joint training are described at `per_run_share`.
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
        joules = cpu_joules(), _gpu_joules(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = {
                "seconds": time.perf_counter() - start,
                "peak_bytes": _peak_bytes() if peaks_are_of_the_stage else None,
                "peak_gpu_bytes": torch.cuda.max_memory_reserved(self.device) if on_gpu else None,
                "cpu_joules": energy_between(cpu_joules(), joules[0]),
                "gpu_joules": energy_between(_gpu_joules(self.device), joules[1]),
            }


def per_run_share(stage: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return the share of one run in a stage that ``n`` runs went through jointly.

    Time and energy are divided by ``n``. The peaks stay those of all runs, and ``together`` is
    ``n``.
    """
    divided = {
        name: stage[name] and stage[name] / n for name in ("seconds", "cpu_joules", "gpu_joules")
    }
    return {**stage, **divided, "together": n}


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


def cpu_joules() -> float | None:
    """Return the running total of all processor packages (RAPL); often readable by root only."""
    try:
        counters = [
            int((zone / "energy_uj").read_text(encoding="ascii"))
            for zone in POWERCAP.glob("intel-rapl:*")
            if zone.name.count(":") == 1  # Packages; their parts have a second number.
        ]
    except (OSError, ValueError):
        return None
    return sum(counters) / 1e6 if counters else None


def _gpu_joules(device: torch.device) -> float | None:
    """Return the running total of the GPU (NVML) if the package nvidia-ml-py is installed."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except Exception:  # NVML's bindings raise various errors.
        return None


def energy_between(after: float | None, before: float | None) -> float | None:
    """Return the joules between two readings; None without readings or after a counter reset."""
    if after is None or before is None or after < before:
        return None
    return after - before
