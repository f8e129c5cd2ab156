"""Which figures there are."""

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
        name: what ``hgmvae-bench figure NAME`` asks for; a number is the paper's.
        title: what it shows.
        scope: what one figure is about: it has a single value of each of these axes, so that a
            grid with several gets several figures.
        drawn_from: the records alone; stored codes and the dataset; or models rebuilt from their
            stored weights and the dataset.
        builder: where the function is that draws it, as ``module:function``. Looked up when first
            drawn, so that the list of figures does not wait for matplotlib.
    """

    name: str
    title: str
    scope: tuple[ScopeAxis, ...]
    drawn_from: FigureInput
    builder: str

    def draw(self, source: FigureSource, **options: Any) -> Figure:
        """Draw the figure; ``options`` are those of its builder.

        Raises:
            FigureError: if the results lack what it shows, or hold several values of an axis of
                its scope.
            hgmvae_bench.storage.artifacts.ArtifactError: if codes or weights are absent or damaged.
            hgmvae_bench.data.DataError: if the dataset is needed and absent.
        """
        figure: Figure = pkgutil.resolve_name(self.builder)(source, **options)
        return figure


_KINDS = (
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
"""Every kind of figure by its name."""


def figure_kind(name: str) -> FigureKind:
    """The kind of figure called ``name``.

    Raises:
        UnknownNameError: if there is none.
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
        path: the results folder.
        name: of the figure, such as ``3``; `FIGURES` lists them.
        grid: which grid, if the folder holds several.
        data: the data folder; the user's cache folder if None.
        dataset: only this one.
        model: only this one or these.
        latent_dim: only this one or these.
        seed: whose codes and images; the first complete one of each cell if None.
        **options: of the figure's builder.

    Raises:
        UnknownNameError: if there is no figure, grid, dataset or model of that name.
        FigureError: if the results lack what the figure shows, or it shows one dataset, latent
            dimension or model and none was chosen.
        hgmvae_bench.storage.store.StoreError: if the folder holds no results, or a damaged record.
        hgmvae_bench.storage.artifacts.ArtifactError: if codes or weights are absent or damaged.
        hgmvae_bench.data.DataError: if the dataset is needed and absent.
    """
    kind = figure_kind(name)
    source = FigureSource.open(Path(path), grid=grid, data=None if data is None else Path(data))
    selected = source.select(
        None if dataset is None else [dataset],
        [model] if isinstance(model, str) else model,
        [latent_dim] if isinstance(latent_dim, int) else latent_dim,
        seed=seed,
    )
    return kind.draw(selected, **options)
