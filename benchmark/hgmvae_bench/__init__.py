"""hgmvae-bench: a benchmark suite for generation and clustering with the VAE family.

What notebooks need stands here by name and is imported when it is first used, so that
``import hgmvae_bench`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgmvae_bench.analysis.figures import draw_figure as draw_figure
    from hgmvae_bench.analysis.frames import load_claims as load_claims
    from hgmvae_bench.analysis.frames import load_comparison as load_comparison
    from hgmvae_bench.analysis.frames import load_history as load_history
    from hgmvae_bench.analysis.frames import load_results as load_results
    from hgmvae_bench.analysis.frames import load_table as load_table
    from hgmvae_bench.analysis.frames import load_tables as load_tables
    from hgmvae_bench.analysis.published import published as published

__version__ = version("hgmvae-bench")

_HOMES = {
    "draw_figure": "analysis.figures",
    "load_claims": "analysis.frames",
    "load_comparison": "analysis.frames",
    "load_history": "analysis.frames",
    "load_results": "analysis.frames",
    "load_table": "analysis.frames",
    "load_tables": "analysis.frames",
    "published": "analysis.published",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
