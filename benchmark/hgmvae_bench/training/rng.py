"""A run's own share of torch's global generators, however many runs take turns in a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class RunRNG:
    """State of torch's global generators that is in force inside its blocks, and only there.

    What a run draws follows from its seed and its own earlier draws alone. On a GPU the state is
    swapped by reference, so that a CUDA graph captured inside a block draws from it ever after,
    wherever it is replayed.

    Args:
        seed: in [0, 2³²).
        device: where the run computes.
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
        """What to draw from on the run's device by name, where the state is not in force."""
        return self._cpu if self._device is None else self._device

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Put the state in force; what was before comes back afterwards."""
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
        """What it will draw: the state of its generators."""
        states = {"cpu": self._cpu.get_state()}
        if self._device is not None:
            states["device"] = self._device.get_state()
        return states

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Draw from here on what it would have drawn when ``state`` gave these."""
        self._cpu.set_state(states["cpu"])
        if self._device is not None:
            self._device.set_state(states["device"])
