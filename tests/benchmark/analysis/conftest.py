from collections.abc import Callable

import pytest

from hgmvae_bench.grid import Grid, Run
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun

FINGERPRINT = {"split": "test", "n_images": 360}


def _digits_run(
    grid: Grid,
    model: str,
    seed: int,
    value: float | None = None,
    *,
    status: str = "complete",
    data: str = "d",
    fingerprint: dict[str, str | int] | None = None,
    metrics: tuple[str, ...] = ("sc", "accuracy"),
    **content: object,
) -> StoredRun:
    """A run of a grid's digits at L = 2, with one value for all of its metrics."""
    recorded = {}
    if value is not None:
        metric_value = MetricValue(value=value, fingerprint=fingerprint or FINGERPRINT)
        recorded = dict.fromkeys(metrics, metric_value)
    run = Run(grid.cell("digits", model, 2), seed, data)
    record = Record.of(run, status=status, metrics=recorded, **content)
    return StoredRun(record, f"{model}{seed}", dict(recorded))


@pytest.fixture(scope="session")
def digits_run() -> Callable[..., StoredRun]:
    return _digits_run


@pytest.fixture
def tiny_runs(tiny_grid: Grid) -> list[StoredRun]:
    """Both seeds of both models of the tiny grid: VAE 0.2 ± 0.14, WAE-IMQ 0.5 ± 0."""
    values = {"vae": (0.1, 0.3), "wae-imq": (0.5, 0.5)}
    return [
        _digits_run(tiny_grid, model, seed, value)
        for model, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
