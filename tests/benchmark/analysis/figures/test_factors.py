"""Traversals, ordered by the factor that each dimension encodes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hgmvae_bench.analysis.figures import FIGURES, FigureError, FigureSource
from hgmvae_bench.analysis.figures.factors import encoded_factors
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.registry import DATASETS
from hgmvae_bench.storage.artifacts import artifact_files
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.build import build_model

GRID = """
name: factors
title: Traversals by factor
seeds: 1
network: { width: 2 }
training: { epochs: 1, batch_size: 64, learning_rate: 0.001 }
tables:
  - name: "1"
    title: Factors
    datasets: [sprites]
    models: [vae]
    latent_dims: [8]
    metrics: [mig]
    rows: [model]
    columns: [metric]
"""


@pytest.fixture(scope="module")
def sprites():
    return DATASETS["sprites"].load(Path(), image_size=32)


@pytest.fixture(scope="module")
def source_of_factors(tmp_path_factory, sprites) -> FigureSource:
    """An untrained model with stored codes: noise, −y, constant, x, scale, noise, noise, x²."""
    grid = parse_grid(GRID, "factors.yaml")
    store = Store(tmp_path_factory.mktemp("factors"))
    store.add_grid(grid)
    (cell,) = grid.cells
    run = Run(cell, 0, sprites.digest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(cell, sprites.input_dim)
    codes = np.random.default_rng(0).normal(size=(4_096, 8)).astype(np.float32)
    values = sprites.factors.test.numpy()
    codes[:, 1] = -values[:, 4]
    codes[:, 2] = 0.5
    codes[:, 3] = values[:, 3]
    codes[:, 4] = values[:, 1]
    codes[:, 7] = (values[:, 3] - 7.5) ** 2
    store.write_artifacts(run.key, artifact_files(model, codes))
    store.add(Record.of(run, status="complete", metrics={}, history={"loss": [1.0]}))
    return FigureSource.open(store.root, data=Path())


def test_rows_are_ordered_by_factor_and_share(source_of_factors):
    figure = FIGURES["factors"].draw(source_of_factors)
    labels = [" ".join(label.get_text().split()) for label in figure.axes[0].get_yticklabels()]
    assert [label.split(" (")[1] for label in labels[1:5]] == [
        "dim 5)",
        "dim 4)",
        "dim 8)",
        "dim 2)",
    ]
    assert labels[1].startswith("scale 1.00")
    assert labels[2].startswith("x 1.00")
    assert labels[4].startswith("y 1.00")
    assert all(label.startswith("no factor") for label in labels[5:])
    assert len(labels) == 9


def test_a_dimension_encodes_the_factor_with_the_largest_share_of_information(sprites):
    values = sprites.factors.test.numpy()
    noise = np.random.default_rng(0).normal(size=len(values))
    codes = np.stack([noise, values[:, 0], values[:, 0] + 0.1 * values[:, 4]], axis=1)
    encoded = encoded_factors(codes.astype(np.float32), values)
    assert [each.dimension for each in encoded[:1]] == [1]
    assert [each.factor for each in encoded] == [0, 0, None]
    assert encoded[0].share == pytest.approx(1, abs=1e-6)


def test_a_dataset_without_factors_is_refused(source):
    one = source.select(models=["vae"])
    with pytest.raises(FigureError, match="no factors"):
        FIGURES["factors"].draw(one)


def test_an_image_that_does_not_exist_is_refused(source_of_factors):
    with pytest.raises(FigureError, match="4,096"):
        FIGURES["factors"].draw(source_of_factors, image=4_096)


def test_the_same_results_give_the_same_files(source_of_factors, assert_deterministic_files):
    assert_deterministic_files(lambda: FIGURES["factors"].draw(source_of_factors))
