"""The files that a run leaves beside its record: weights and test codes, as safetensors.

Nothing here executes anything when it is read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hgmvae_bench.plugins.image_data import Codes
from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.utils.errors import UserError

WEIGHTS = "model.safetensors"
CODES = "codes.safetensors"


class ArtifactError(UserError, RuntimeError):
    """A file of a run that is absent, damaged or of another model; the message names it."""


def artifact_files(model: BenchmarkModel, test_codes: Codes) -> dict[str, bytes]:
    """Artifact files by name: every parameter and buffer, and the deterministic codes (N, L)."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    # Copies, since safetensors refuses tensors that share memory or have gaps.
    weights = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    codes = {"test_codes": torch.from_numpy(test_codes)}
    return {WEIGHTS: save(weights), CODES: save(codes)}


def load_weights(model: BenchmarkModel, folder: Path) -> None:
    """Read parameters and buffers into ``model``, which is built with the run's settings.

    Raises:
        ArtifactError: if the file is absent or damaged, or holds another model's weights.
    """
    path = folder / WEIGHTS
    state = _load(path, "weights")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights of another model: {error}") from error


def load_codes(folder: Path) -> Codes:
    """Read the deterministic test codes (N, L).

    Raises:
        ArtifactError: if the file is absent or damaged, or holds no such codes.
    """
    path = folder / CODES
    codes = _load(path, "codes").get("test_codes")
    if codes is None or codes.ndim != 2:
        raise ArtifactError(f"{path}: damaged: no test codes (N, L) in it")
    array: Codes = codes.numpy()
    return array


def _load(path: Path, what: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: not there; the run's {what} were not kept") from error
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from error
