"""Artifacts of a run: weights and test codes as safetensors files.

Loading them executes no code.
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
    """An artifact is missing, damaged or of another model; the message names the file."""


def artifact_files(model: BenchmarkModel, test_codes: Codes) -> dict[str, bytes]:
    """Serialize a run's artifacts.

    Args:
        model: its parameters and buffers are saved.
        test_codes: deterministic codes (N, L) of the test images.

    Returns:
        Content of each file, by name.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    # safetensors rejects tensors that share memory or are not contiguous.
    weights = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    codes = {"test_codes": torch.from_numpy(test_codes)}
    return {WEIGHTS: save(weights), CODES: save(codes)}


def load_weights(model: BenchmarkModel, folder: Path) -> None:
    """Load a run's parameters and buffers into ``model``, which must have the run's settings.

    Raises:
        ArtifactError: if the file is missing or damaged, or holds another model's weights.
    """
    path = folder / WEIGHTS
    state = _load(path, "weights")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights of another model: {error}") from error


def load_codes(folder: Path) -> Codes:
    """Load the deterministic codes (N, L) of the test images.

    Raises:
        ArtifactError: if the file is missing or damaged, or has no such codes.
    """
    path = folder / CODES
    codes = _load(path, "codes").get("test_codes")
    if codes is None or codes.ndim != 2:
        raise ArtifactError(f"{path}: damaged: it has no test codes of shape (N, L)")
    array: Codes = codes.numpy()
    return array


def _load(path: Path, what: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; the run's {what} were not saved") from error
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from error
