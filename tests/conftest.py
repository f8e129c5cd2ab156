import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from hgmvae_bench.data import ImageData
from hgmvae_bench.grid import Grid, parse_grid
from hgmvae_bench.plugins.registry import DATASETS

# A slow machine is no failure, and every test process draws the same examples.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data such as MNIST. Tests that need it are skipped if there is no MNIST."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HGMVAE_BENCH_TEST_DATA", beside))
    if not (folder / "MNIST").is_dir():
        pytest.skip(f"no real data in {folder} (HGMVAE_BENCH_TEST_DATA names another folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
