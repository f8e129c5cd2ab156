"""Catalogue of the figures."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
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
