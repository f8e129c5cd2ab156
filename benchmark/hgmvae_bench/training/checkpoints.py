"""The state of a training, so that a long run goes on where it was stopped.

Between two epochs that is all that decides the further training; at its end, the trained model and
what is known of the training, for a process that scores it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hgmvae_bench.utils.atomic_files import LocalFiles

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"
FORMAT = "1"


class TrainingEnd(NamedTuple):
    """How a training ended.

    Attributes:
        divergence: what ceased to be finite, and where; None if nothing did.
        resumed_after: the epoch after which an earlier training was taken up; 0 if none was.
        cost: of the training, as `hgmvae_bench.execution.resource_meter.Meter` measures a stage.
    """

    divergence: str | None
    resumed_after: int
    cost: Mapping[str, Any]


class TrainingState(NamedTuple):
    """A training between two epochs, or at its end.

    Attributes:
        epoch: finished epochs.
        history: every loss term per finished epoch.
        tensors: of the model, its optimisers and its generators; at the end of the model alone.
        end: how it ended; None if it is to go on.
    """

    epoch: int
    history: dict[str, list[float]]
    tensors: Mapping[str, Tensor]
    end: TrainingEnd | None = None


@dataclass
class Checkpoint:
    """Where one run keeps its state: ``checkpoints/<run key>.safetensors``.

    A run that is over before the first checkpoint is due writes none.

    Attributes:
        files: the results folder's.
        key: the run key.
        device: type of the device that the run is trained on; the state of another's generators
            does not fit it.
        seconds: least time between two checkpoints.
    """

    files: LocalFiles
    key: str
    device: str = "cpu"
    seconds: float = 20.0
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        """Of the file, within the results folder."""
        return f"{CHECKPOINT_FOLDER}/{self.key}.safetensors"

    def is_due(self) -> bool:
        """Whether there is much to lose."""
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, state: TrainingState) -> None:
        """Write the state in place of the one before; where that is refused, that one stays."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        about = {
            "format": FORMAT,
            "key": self.key,
            "torch": torch.__version__,
            "device": self.device,
            "epoch": str(state.epoch),
            "history": json.dumps(state.history),
            "end": json.dumps(None if state.end is None else state.end._asdict()),
        }
        try:
            self.files.write(self.path, save(tensors, about))
        except OSError as error:
            logger.warning("%s: no checkpoint after epoch %d: %s", self.key, state.epoch, error)
        self._saved_at = time.monotonic()

    def load(self) -> TrainingState | None:
        """The state that was kept.

        None if there is none, or it is damaged, or of another torch or kind of device.
        """
        try:
            with safe_open(self.files.root / self.path, framework="pt") as file:
                about = file.metadata() or {}
                of = tuple(map(about.get, ("format", "key", "torch", "device")))
                if of != (FORMAT, self.key, torch.__version__, self.device):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                end = json.loads(about.get("end", "null"))
                return TrainingState(
                    int(about["epoch"]),
                    json.loads(about["history"]),
                    tensors,
                    None if end is None else TrainingEnd(**end),
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None

    def remove(self) -> None:
        """Remove what was kept: the run is over."""
        with suppress(OSError):
            self.files.remove(self.path)
