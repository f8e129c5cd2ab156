"""Figures of a results folder, drawn without training.

::

    import hgmvae_bench as hb

    figure = hb.Results("results/local").figure("3", dataset="mnist")
    figure.savefig("clustering.pdf")

A builder takes a `FigureSource` and returns a matplotlib ``Figure`` that has no window and leaves
pyplot's state alone. `catalogue` lists the figures, `source` reads records, codes and models,
`style` sets colours and sizes, `files` writes figures, and the other modules hold the builders.
matplotlib is imported only when a figure is drawn.
"""

from hgmvae_bench.analysis.figures.catalogue import FIGURES, FigureKind, figure_kind
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource

__all__ = ["FIGURES", "FigureError", "FigureKind", "FigureSource", "figure_kind"]
