"""Catalogue of the figures."""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hgmvae_bench.analysis.figures.source import FigureSource, ScopeAxis
from hgmvae_bench.plugins.protocols import UnknownNameError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureInput = Literal["records", "codes", "models"]


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes:
        name: argument of ``hgmvae-bench figure NAME``; a number is the paper's.
        title: content of the figure.
        scope: axes of which one figure shows a single value. A grid with several values gets
            several figures.
        drawn_from: required input: records only; stored codes and the dataset; or stored weights
            and the dataset.
        builder: function that draws the figure, as ``module:function``. It is imported when first
            used, so that listing figures does not import matplotlib.
    """

    name: str
    title: str
    scope: tuple[ScopeAxis, ...]
    drawn_from: FigureInput
    builder: str

    def draw(self, source: FigureSource, **options: Any) -> Figure:
        """Draw the figure; ``options`` are passed to its builder.

        Raises:
            FigureError: if the source has nothing to draw, or several values of an axis in `scope`.
            hgmvae_bench.storage.artifacts.ArtifactError: if codes or weights are missing or
                damaged.
            hgmvae_bench.data.DataError: if the dataset is needed but missing.
        """
        figure: Figure = pkgutil.resolve_name(self.builder)(source, **options)
        return figure


_KINDS = (
    FigureKind(
        "verdicts",
        "The paper's values, by verdict of the measured seeds",
        (),
        "records",
        "hgmvae_bench.analysis.figures.verdicts:verdict_heatmap",
    ),
    FigureKind(
        "3",
        "Clustering indices against the latent dimension",
        ("dataset",),
        "records",
        "hgmvae_bench.analysis.figures.curves:metrics_by_latent_dim",
    ),
    FigureKind(
        "4",
        "Test codes by class, projected by t-SNE",
        ("dataset", "latent_dim"),
        "codes",
        "hgmvae_bench.analysis.figures.latent:codes_by_class",
    ),
    FigureKind(
        "5a",
        "Originals above their reconstructions",
        ("dataset", "latent_dim"),
        "models",
        "hgmvae_bench.analysis.figures.images:reconstructions",
    ),
    FigureKind(
        "5b",
        "A manifold between four images",
        ("dataset", "latent_dim", "model"),
        "models",
        "hgmvae_bench.analysis.figures.images:manifold",
    ),
    FigureKind(
        "6",
        "Latent traversals",
        ("dataset", "latent_dim", "model"),
        "models",
        "hgmvae_bench.analysis.figures.images:traversals",
    ),
    FigureKind(
        "factors",
        "Latent traversals by the factor that each dimension encodes",
        ("dataset", "latent_dim", "model"),
        "models",
        "hgmvae_bench.analysis.figures.factors:traversals_by_factor",
    ),
    FigureKind(
        "samples",
        "Samples from the prior",
        ("dataset", "latent_dim"),
        "models",
        "hgmvae_bench.analysis.figures.images:samples",
    ),
    FigureKind(
        "training",
        "Every loss term by epoch",
        ("dataset", "latent_dim"),
        "records",
        "hgmvae_bench.analysis.figures.curves:training_curves",
    ),
    FigureKind(
        "rate-distortion",
        "Models by rate and distortion",
        ("dataset",),
        "records",
        "hgmvae_bench.analysis.figures.likelihood:rate_distortion",
    ),
    FigureKind(
        "components",
        "Use of the components by class",
        ("dataset", "latent_dim"),
        "models",
        "hgmvae_bench.analysis.figures.latent:component_usage",
    ),
    FigureKind(
        "ranks",
        "Mean ranks over cells with Nemenyi's critical difference",
        (),
        "records",
        "hgmvae_bench.analysis.figures.ranks:mean_ranks",
    ),
)

FIGURES = {kind.name: kind for kind in _KINDS}
"""Figure kinds by name."""


def figure_kind(name: str) -> FigureKind:
    """Look up a figure kind.

    Raises:
        UnknownNameError: if there is no figure ``name``.
    """
    if name not in FIGURES:
        raise UnknownNameError("figure", name, list(FIGURES))
    return FIGURES[name]


def draw_figure(
    path: str | os.PathLike[str],
    name: str,
    *,
    grid: str | None = None,
    data: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    model: str | list[str] | None = None,
    latent_dim: int | list[int] | None = None,
    seed: int | None = None,
    **options: Any,
) -> Figure:
    """Draw a figure of a results folder.

    Args:
        path: results folder.
        name: name of the figure, such as ``3``; `FIGURES` lists them.
        grid: name of the grid; required if the folder holds several.
        data: data folder; None means the user's cache folder.
        dataset: restrict the figure to this dataset.
        model: restrict the figure to this model or these models.
        latent_dim: restrict the figure to this latent dim or these latent dims.
        seed: seed of the runs whose codes and images are drawn; None means the first complete run
            of each cell.
        **options: arguments of the figure's builder.

    Raises:
        UnknownNameError: if there is no figure, grid, dataset or model of that name.
        FigureError: if the folder holds nothing to draw, or several datasets, latent dims or models
            where the figure shows one.
        hgmvae_bench.storage.store.StoreError: if the folder holds no results or a damaged record.
        hgmvae_bench.storage.artifacts.ArtifactError: if codes or weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is needed but missing.
    """
    source = FigureSource.open(Path(path), grid=grid, data=None if data is None else Path(data))
    return draw_from_source(
        source, name, dataset=dataset, model=model, latent_dim=latent_dim, seed=seed, **options
    )


def draw_from_source(
    source: FigureSource,
    name: str,
    *,
    dataset: str | None = None,
    model: str | list[str] | None = None,
    latent_dim: int | list[int] | None = None,
    seed: int | None = None,
    **options: Any,
) -> Figure:
    """Draw a figure of a source; arguments and errors as in `draw_figure`."""
    kind = figure_kind(name)
    selected = source.select(
        None if dataset is None else [dataset],
        [model] if isinstance(model, str) else model,
        [latent_dim] if isinstance(latent_dim, int) else latent_dim,
        seed=seed,
    )
    return kind.draw(selected, **options)
