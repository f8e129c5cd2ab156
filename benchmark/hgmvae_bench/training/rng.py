"""Random state of one run, independent of other runs in the same process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class RunRNG:
    """State of torch's global random generators that belongs to one run.

    The state is swapped in by `activate`, so that a run's draws depend only on its seed and its
    own earlier draws. On a GPU the state is swapped by reference. A CUDA graph that is captured
    within `activate` therefore keeps drawing from this state, wherever it is replayed.

    Args:
        seed: seed in [0, 2³²).
        device: device of the run.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cpu = torch.Generator().manual_seed(seed)
        self._device: torch.Generator | None = None
        if device.type == "cuda":
            self._device = torch.Generator(device).manual_seed(seed)
            torch.cuda.init()
            self._default = torch.cuda.default_generators[
                torch.cuda.current_device() if device.index is None else device.index
            ]

    @property
    def generator(self) -> torch.Generator:
        """Generator of the run's device, for explicit draws outside `activate`."""
        return self._cpu if self._device is None else self._device

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Use this state as torch's global one within the block, and restore the outer one."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self._cpu.get_state())
        if self._device is not None:
            outer_device = self._default.graphsafe_get_state()
            self._default.graphsafe_set_state(self._device)
        try:
            yield
        finally:
            self._cpu.set_state(torch.get_rng_state())
            torch.set_rng_state(outer)
            if self._device is not None:
                self._default.graphsafe_set_state(outer_device)

    def state(self) -> dict[str, torch.Tensor]:
        """States of the generators, by ``cpu`` and, on a GPU, ``device``."""
        states = {"cpu": self._cpu.get_state()}
        if self._device is not None:
            states["device"] = self._device.get_state()
        return states

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Return to states from `state`."""
        self._cpu.set_state(states["cpu"])
        if self._device is not None:
            self._device.set_state(states["device"])
