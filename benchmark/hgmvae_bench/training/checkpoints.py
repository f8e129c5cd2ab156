"""Checkpoints, from which an interrupted training resumes with identical results.

Between two epochs a checkpoint holds the full state of the training. At the end it holds the
trained model and the outcome, which may be scored by another process.
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
    """Outcome of a finished training.

    Attributes:
        divergence: first non-finite value and its place; None if all are finite.
        resumed_after: epochs that were finished before the training was resumed; 0 if it was not.
        cost: cost of the training, as measured by
            `hgmvae_bench.execution.resource_meter.ResourceMeter`.
    """

    divergence: str | None
    resumed_after: int
    cost: Mapping[str, Any]


class TrainingState(NamedTuple):
    """State of a training between two epochs, or at its end.

    Attributes:
        epoch: number of finished epochs.
        history: mean of each loss term per finished epoch.
        tensors: tensors of the model, its optimisers and its generators, as returned by
            `hgmvae_bench.training.trainer.Trainer.states`; at the end, of the model alone.
        end: outcome; None if the training has not ended.
    """

    epoch: int
    history: dict[str, list[float]]
    tensors: Mapping[str, Tensor]
    end: TrainingEnd | None = None


@dataclass
class Checkpoint:
    """Checkpoint file of one run, ``checkpoints/<run key>.safetensors``.

    A training that is shorter than the interval writes no file.

    Attributes:
        files: files of the results folder.
        key: run key.
        device: type of the training device. Generator states do not fit another type.
        interval: minimum time between two checkpoints in seconds.
    """

    files: LocalFiles
    key: str
    device: str = "cpu"
    interval: float = 20.0
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        """Path of the file, relative to the results folder."""
        return f"{CHECKPOINT_FOLDER}/{self.key}.safetensors"

    def is_due(self) -> bool:
        """Whether the checkpoint interval has elapsed."""
        return time.monotonic() - self._saved_at >= self.interval

    def save(self, state: TrainingState) -> None:
        """Replace the checkpoint. If the file cannot be written, log a warning and keep the old."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
        metadata = {
            "format": FORMAT,
            "key": self.key,
            "torch": torch.__version__,
            "device": self.device,
            "epoch": str(state.epoch),
            "history": json.dumps(state.history),
            "end": json.dumps(None if state.end is None else state.end._asdict()),
        }
        try:
            self.files.write(self.path, save(tensors, metadata))
        except OSError as error:
            logger.warning("%s: no checkpoint after epoch %d: %s", self.key, state.epoch, error)
        self._saved_at = time.monotonic()

    def load(self) -> TrainingState | None:
        """Read the checkpoint.

        Returns:
            The state; None if the file is missing or damaged, or was written with another version
            of torch or on another type of device. If there is a file, a warning says so.
        """
        try:
            with safe_open(self.files.root / self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                origin = tuple(map(metadata.get, ("format", "key", "torch", "device")))
                expected = (FORMAT, self.key, torch.__version__, self.device)
                if origin != expected:
                    raise ValueError(
                        f"its format, key, version of torch and device are {origin}, not {expected}"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                end = json.loads(metadata.get("end", "null"))
                return TrainingState(
                    int(metadata["epoch"]),
                    json.loads(metadata["history"]),
                    tensors,
                    None if end is None else TrainingEnd(**end),
                )
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            logger.warning(
                "%s: the checkpoint cannot be used, so the training restarts: %s",
                self.key,
                error,
            )
            return None

    def remove(self) -> None:
        """Delete the file, if it exists."""
        with suppress(OSError):
            self.files.remove(self.path)
