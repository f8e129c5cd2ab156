"""hgmvae-bench: a benchmark suite for generation and clustering with the VAE family.

The names of the Python interface are imported when they are first used, so that
``import hgmvae_bench`` takes milliseconds and does not import torch::

    import hgmvae_bench as hb

    results = hb.run_grid("smoke", results="results/local", workers=2)
    results.table("1").means
    hb.check_grid("smoke", baseline="results/baselines/smoke.json")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgmvae_bench.analysis.frames import load_history as load_history
    from hgmvae_bench.analysis.frames import load_results as load_results
    from hgmvae_bench.analysis.published import published as published
    from hgmvae_bench.execution.api import evaluate_grid as evaluate_grid
    from hgmvae_bench.execution.api import plan_grid as plan_grid
    from hgmvae_bench.execution.api import run_grid as run_grid
    from hgmvae_bench.execution.check import RegressionError as RegressionError
    from hgmvae_bench.execution.check import check_grid as check_grid
    from hgmvae_bench.execution.check import update_baseline as update_baseline
    from hgmvae_bench.execution.results import Results as Results
    from hgmvae_bench.grid import Grid as Grid
    from hgmvae_bench.grid import GridSpec as GridSpec
    from hgmvae_bench.grid import load_grid as load_grid
    from hgmvae_bench.grid import make_grid as make_grid

__version__ = version("hgmvae-bench")

_MODULES = {
    "Grid": "grid",
    "GridSpec": "grid",
    "RegressionError": "execution.check",
    "Results": "execution.results",
    "check_grid": "execution.check",
    "evaluate_grid": "execution.api",
    "load_grid": "grid",
    "load_history": "analysis.frames",
    "load_results": "analysis.frames",
    "make_grid": "grid",
    "plan_grid": "execution.api",
    "published": "analysis.published",
    "run_grid": "execution.api",
    "update_baseline": "execution.check",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
