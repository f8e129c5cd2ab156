"""hgmvae-bench: a benchmark suite for generation and clustering with the VAE family.

What notebooks need stands here by name and is imported when it is first used, so that
``import hgmvae_bench`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgmvae_bench.figures import draw_figure as draw_figure
    from hgmvae_bench.paper import published as published
    from hgmvae_bench.results import load_claims as load_claims
    from hgmvae_bench.results import load_comparison as load_comparison
    from hgmvae_bench.results import load_history as load_history
    from hgmvae_bench.results import load_results as load_results
    from hgmvae_bench.results import load_table as load_table
    from hgmvae_bench.results import load_tables as load_tables

__version__ = version("hgmvae-bench")

_HOMES = {
    "draw_figure": "figures",
    "load_claims": "results",
    "load_comparison": "results",
    "load_history": "results",
    "load_results": "results",
    "load_table": "results",
    "load_tables": "results",
    "published": "paper",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
