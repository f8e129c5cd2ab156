"""Restoring the trained model of a stored run."""

from __future__ import annotations

import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec
from hgmvae_bench.grid import Run
from hgmvae_bench.storage.artifacts import load_weights
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.build import build_model


def restore_codec(run: Run, data: ImageData, *, store: Store, device: torch.device) -> ModelCodec:
    """Build the model of a finished run and load its stored weights.

    torch's global generator keeps its state.

    Raises:
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(run.cell, data.input_dim)
    load_weights(model, store.fetch_artifacts(run.key))
    model.to(device)
    return ModelCodec(model, device)
