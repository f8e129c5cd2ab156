"""Results that figures are drawn from: made-up records, and models with random weights."""

import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from hgmvae_bench.analysis.figures import FigureSource
from hgmvae_bench.analysis.figures.style import to_png, to_svg
from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.artifacts import artifact_files
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.training.build import build_model

MADE_UP = """
name: made-up
title: Records written by hand
seeds: 3
models:
  vae: { title: "a $\\\\frac{1}$ <b>name</b>" }
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [8, 2, 4]
    metrics: [sc, ch, db]
    rows: [metric, model]
    columns: [latent_dim]
"""


def value_of(metric: str, model: str, latent_dim: int, seed: int) -> float:
    """Metric value of a made-up run."""
    position = ["vae", "beta-vae", "swae"].index(model)
    scale = {"sc": 0.1, "ch": 100.0, "db": 1.0}[metric]
    return scale * (1 + position + latent_dim / 10 + seed**2)


@pytest.fixture
def made_up(tmp_path) -> Callable[..., FigureSource]:
    """Function that makes results of records without artifacts.

    Its argument lists the runs (model, L, seed) that diverged.
    """

    def make(diverged=()) -> FigureSource:
        grid = parse_grid(MADE_UP, "made-up.yaml")
        runs = {}
        for cell in grid.cells:
            for seed in range(3):
                metrics = {
                    metric: MetricValue(value=value_of(metric, cell.model, cell.latent_dim, seed))
                    for metric in ("sc", "ch", "db")
                }
                history = {"loss": [3.0 - seed, 2.0, 1.0], "fisher": [0.5 * seed, 1.0, 1.5]}
                if (cell.model, cell.latent_dim, seed) in diverged:
                    status, metrics = "diverged", {}
                    history = {term: values[:2] for term, values in history.items()}
                else:
                    status = "complete"
                record = Record.of(
                    Run(cell, seed, "d"), status=status, metrics=metrics, history=history
                )
                runs[record.key] = StoredRun(record, record.key, metrics)
        return FigureSource(grid, Store(tmp_path), runs, tmp_path)

    return make


@pytest.fixture(scope="session")
def stored_models(tmp_path_factory: pytest.TempPathFactory, tiny_text: str, digits: ImageData):
    """Results folder of the tiny grid with weights and codes of untrained models."""
    grid = parse_grid(tiny_text, "tiny.yaml")
    store = Store(tmp_path_factory.mktemp("stored-models"))
    store.add_grid(grid)
    for number, (cell, metrics) in enumerate(grid.cells.items()):
        for seed in range(grid.spec.seeds):
            run = Run(cell, seed, digits.digest)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(10 * number + seed)
                model = build_model(cell, digits.input_dim)
            codes = ModelCodec(model, torch.device("cpu")).encode(digits.test_images)
            store.write_artifacts(run.key, artifact_files(model, codes))
            values = {
                name: MetricValue(value=seed + n / 7)
                for n, name in enumerate(sorted(metrics), start=number)
            }
            history = {"loss": [5.0, 3.0 + seed]}
            store.add(Record.of(run, status="complete", metrics=values, history=history))
    return store.root


@pytest.fixture
def source(stored_models: Path) -> FigureSource:
    """Results with models that can be drawn."""
    return FigureSource.open(stored_models, data=Path())


def _assert_deterministic_files(draw: Callable[[], Figure]) -> None:
    first, second = draw(), draw()
    svg = to_svg(first)
    assert svg == to_svg(second)
    assert b"<dc:date>" not in svg
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    png = to_png(first)
    assert png == to_png(second)
    image = Image.open(io.BytesIO(png))
    np.testing.assert_allclose(image.size, first.get_size_inches() * 200, atol=1)
    assert np.asarray(image.convert("L")).std() > 5


@pytest.fixture(scope="session")
def assert_deterministic_files() -> Callable[[Callable[[], Figure]], None]:
    """Function that asserts that what is drawn twice gives equal and valid SVG and PNG files."""
    return _assert_deterministic_files


@pytest.fixture
def lines():
    """Function that returns a panel's lines by label."""
    return lambda panel: {line.get_label(): line for line in panel.get_lines()}


@pytest.fixture
def tile():
    """Function that cuts one image out of a mosaic."""
    from hgmvae_bench.analysis.figures.images import GAP

    def cut(picture: np.ndarray, row: int, column: int, side: int = 32) -> np.ndarray:
        top, left = row * (side + GAP), column * (side + GAP)
        return picture[top : top + side, left : left + side]

    return cut
