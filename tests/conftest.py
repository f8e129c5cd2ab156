from pathlib import Path

import pytest
import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.grid import Grid, parse_grid
from hgmvae_bench.plugins.registry import DATASETS

TINY = """
name: tiny
title: Two models, one epoch
seeds: 2
network: { width: 2 }
training: { epochs: 1, batch_size: 64, train_images: 128 }
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, wae-imq]
    latent_dims: [2]
    metrics: [sc, accuracy]
    rows: [metric]
    columns: [model]
"""


@pytest.fixture(scope="session")
def tiny_text() -> str:
    return TINY


@pytest.fixture
def tiny_grid() -> Grid:
    return parse_grid(TINY, "tiny.yaml")


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return DATASETS["digits"].load(Path(), image_size=32)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
