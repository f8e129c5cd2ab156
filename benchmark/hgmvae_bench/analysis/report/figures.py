"""Figures of a report, embedded as data URIs."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hgmvae_bench.analysis.figures.catalogue import FIGURES, FigureInput, FigureKind
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource, ScopeAxis
from hgmvae_bench.analysis.tables import Table
from hgmvae_bench.utils.errors import UserError

IMAGE_DPI = 150
"""Resolution of figures of images, whose own pixels are coarser."""

HEATMAP = "verdicts"
"""Figure among the findings; `page_figures` leaves it out."""


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, or the reason why it is missing.

    Attributes:
        title: caption.
        alt: alternative text.
        image: data URI; empty if the figure could not be drawn.
        dataset: title of its dataset; empty if it shows several.
        error: reason why it could not be drawn.
    """

    title: str
    alt: str = ""
    image: str = ""
    dataset: str = ""
    error: str = ""


def heatmap(source: FigureSource) -> PageFigure | None:
    """Heatmap of the verdicts; None if the paper has no value of the grid's cells."""
    figure = _page_figure(FIGURES[HEATMAP], source)
    return figure if figure.image else None


def page_figures(
    source: FigureSource, tables: list[Table], inputs: Collection[FigureInput]
) -> Iterator[PageFigure]:
    """Figures that are drawn from the given inputs.

    Figures of models and codes show one latent dim of each dataset. Traversals and manifolds show
    one model; see `_shown_cells`.
    """
    shown = _shown_cells(source, tables)
    for kind in FIGURES.values():
        if kind.drawn_from not in inputs or kind.name == HEATMAP:
            continue
        for values, part in source.split(kind.scope):
            # Datasets without a trained model stay in: their figures name what is missing.
            chosen = shown.get(values.get("dataset", ""), {})
            if all(values[axis] == chosen.get(axis, values[axis]) for axis in kind.scope):
                title = source.grid.dataset_title(part.dataset) if "dataset" in values else ""
                yield _page_figure(kind, part, title)


def _page_figure(kind: FigureKind, source: FigureSource, dataset: str = "") -> PageFigure:
    from hgmvae_bench.analysis.figures.style import to_png, to_svg

    number = f"Fig. {kind.name}: " if kind.name[0].isdigit() else ""
    title = f"{number}{kind.title}" + (f", {dataset}" if dataset else "")
    try:
        figure = kind.draw(source)
        if kind.drawn_from == "models":
            mime, image = "image/png", to_png(figure, dpi=IMAGE_DPI)
        else:
            mime, image = "image/svg+xml", to_svg(figure)
    except UserError as error:
        return PageFigure(title, dataset=dataset, error=str(error))
    return PageFigure(
        title,
        alt=(str(figure.get_label()) or figure.get_suptitle()).replace("\n", "; "),
        image=f"data:{mime};base64,{base64.b64encode(image).decode()}",
        dataset=dataset,
    )


def _shown_cells(source: FigureSource, tables: list[Table]) -> dict[str, dict[ScopeAxis, Any]]:
    """Latent dim and model of each dataset whose codes and images are shown.

    The latent dim is the one with most trained models, and the largest if there are several.
    The model is the one with the best mean rank at that latent dim.
    """
    ranks: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for entry in (entry for table in tables for entry in table.entries):
        if entry.rank is not None:
            ranks[entry.dataset, entry.latent_dim, entry.model].append(entry.rank)
    trained: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for values, part in source.split(("dataset", "latent_dim")):
        try:
            trained[values["dataset"]][values["latent_dim"]] = list(part.runs_to_draw())
        except FigureError:
            continue
    shown: dict[str, dict[ScopeAxis, Any]] = {}
    for dataset, models_by_dim in trained.items():
        latent_dim = max(models_by_dim, key=lambda dim: (len(models_by_dim[dim]), dim))
        mean_rank = {
            model: fmean(ranks.get((dataset, latent_dim, model), [len(source.models)]))
            for model in models_by_dim[latent_dim]
        }
        best = min(mean_rank, key=lambda model: mean_rank[model])
        shown[dataset] = {"latent_dim": latent_dim, "model": best}
    return shown
