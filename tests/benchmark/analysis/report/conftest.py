"""Made-up results whose names try to become markup, and their report."""

import json

import pytest

from hgmvae_bench.analysis.figures import FigureSource
from hgmvae_bench.analysis.report import build_report
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record
from hgmvae_bench.storage.store import Store

HOSTILE = (
    "</style></script><script>window.hacked = 1</script><img src=x onerror=alert(1)>\"' {{ 7*7 }}"
)

GRID = f"""
name: hostile
title: {json.dumps(HOSTILE)}
seeds: 2
datasets:
  digits: {{ title: 'Digits "<b>"' }}
models:
  vae: {{ title: {json.dumps(HOSTILE)} }}
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [4, 8]
    metrics: [sc, ch]
    rows: [metric, model]
    columns: [latent_dim]
  - name: "2"
    title: Across
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [8]
    metrics: [db]
    rows: [dataset]
    columns: [model]
"""

VALUES = {"vae": 9.0, "beta-vae": 100.25, "swae": -2.0}

# Name, title, L and values.
CONTROLS = [
    ("pca", "PCA", 4, {"sc": 0.5}),
    ("pca", "PCA", 8, {"sc": 0.75}),
    ("mean-image", f"Mean {HOSTILE}", None, {"db": 33.5}),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Made-up records; swae's second seed diverged, beta-vae's second at L = 4 was never run."""
    grid = parse_grid(GRID, "hostile.yaml")
    store = Store(tmp_path_factory.mktemp("report"))
    store.add_grid(grid)
    for name, title, latent_dim, values in CONTROLS:
        control = ControlRecord(
            key=f"digits_{name}_L{latent_dim}_0" if latent_dim else f"digits_{name}_0",
            control=name,
            title=title,
            dataset="digits",
            image_size=32,
            train_images=None,
            data_digest="d",
            latent_dim=latent_dim,
            comparable=True,
            metrics={metric: MetricValue(value=value) for metric, value in values.items()},
        )
        store.add_control(control)
    for model, value in VALUES.items():
        for latent_dim in (4, 8):
            for seed in range(2):
                if (model, latent_dim, seed) == ("beta-vae", 4, 1):
                    continue
                diverged = (model, seed) == ("swae", 1)
                metrics = {
                    metric: MetricValue(value=value + seed / 10 + latent_dim / 100)
                    for metric in ("sc", "ch", "db")
                }
                record = Record.of(
                    Run(grid.cell("digits", model, latent_dim), seed, "d"),
                    status="diverged" if diverged else "complete",
                    error=f"</pre>{HOSTILE}\nthe loss is nan" if diverged else None,
                    metrics={} if diverged else metrics,
                    history={"loss": [8.0, 4.0 + seed]},
                    n_parameters=1234,
                    seconds={"training": 10.0 + seed, "scoring": 1.0},
                    provenance={
                        "cpu": "A <b>CPU</b>",
                        "gpu": None,
                        "packages": {"torch": "2.11"},
                        "stages": {"training": {"peak_bytes": (1 + seed) * 2**30}},
                    },
                )
                store.add(record)
    return FigureSource.open(store.root)


@pytest.fixture(scope="module")
def page(source):
    return build_report(source, figures=["records"])


@pytest.fixture(scope="session")
def hostile():
    """A title that would run a script, were it taken for markup."""
    return HOSTILE
