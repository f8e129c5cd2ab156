"""Figures, drawn from a results folder; nothing is trained.

::

    import hgmvae_bench as hb

    figure = hb.draw_figure("results/local", "3", dataset="mnist")
    figure.savefig("clustering.pdf")

A builder takes `FigureSource` and gives a matplotlib ``Figure`` that belongs to no window and to no
global state. `kinds` lists the figures, `source` finds the records, codes and models, `style` has
the looks, `files` writes figures, and the other modules hold the builders. Neither this package
nor `kinds` and `source` import matplotlib before something is drawn.
"""

from hgmvae_bench.analysis.figures.catalogue import FIGURES, FigureKind, draw_figure, figure_kind
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource

__all__ = ["FIGURES", "FigureError", "FigureKind", "FigureSource", "draw_figure", "figure_kind"]
