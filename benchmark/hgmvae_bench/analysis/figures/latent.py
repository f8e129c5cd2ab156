"""Figures of the latent space: codes by class, and component use by class."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource, format_seeds
from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.metrics.tsne_clustering import project
from hgmvae_bench.plugins.image_data import Codes, Labels
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.utils.seeding import derive_seed

Points = npt.NDArray[np.float32]


@mpl.rc_context(style.STYLE)
def codes_by_class(source: FigureSource, max_points: int = 1000) -> Figure:
    """Fig. 4: stored test codes in the plane, coloured by class, with a panel for each model.

    Codes of more than two dimensions are projected by t-SNE (van der Maaten & Hinton 2008) with a
    seed derived from the run key.

    Args:
        source: results of one dataset and latent dim.
        max_points: maximum number of test images, spaced evenly over the test set.

    Raises:
        FigureError: if the dataset has no classes, no model has a complete run, or a code is not
            finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the codes are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset, which provides the classes, is missing.
    """
    runs = source.runs_to_draw()
    columns = min(3, len(source.models))
    figure, panels = style.panels(
        len(source.models), columns=columns, height=min(style.WIDTH / columns, 3.3)
    )
    shown = total = 0
    class_names: list[str] = []
    for panel, model in zip(panels, source.models, strict=True):
        panel.set_title(source.model_title(model))
        run = runs.get(model)
        if run is None:
            style.show_reason(panel, source.missing_reason(model))
            continue
        labels, class_names = _classes(source.data(model, run))
        codes = source.codes(run)
        total, shown = len(codes), min(max_points, len(codes))
        indices = np.linspace(0, total - 1, shown).round().astype(int)
        if codes.std(axis=0).any():
            points = project(codes[indices], derive_seed(run.record.key, "t-sne"))
            _scatter(panel, points, labels[indices], class_names)
            _label_axes(panel, projected=codes.shape[1] != 2)
        else:
            style.show_reason(panel, "all test images have the same code")
    figure.legend(
        handles=[_class_handle(label, name) for label, name in enumerate(class_names)],
        loc="outside lower center",
        ncols=style.legend_columns(class_names, 10),
        columnspacing=1,
        handletextpad=0.2,
    )
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: codes of {shown:,} of {total:,} "
        f"test images by class, {format_seeds(runs.values())}"
    )
    return figure


def _label_axes(panel: Axes, *, projected: bool) -> None:
    """Label the axes; those of a projection have no scale."""
    if projected:
        panel.set_xticks([])
        panel.set_yticks([])
    for axis, number in ((panel.xaxis, 1), (panel.yaxis, 2)):
        axis.set_label_text(f"t-SNE {number}" if projected else f"code, dimension {number}")


def _classes(data: ImageData) -> tuple[Labels, list[str]]:
    """Labels (N,) of the test images and class names."""
    if data.test_labels is None:
        raise FigureError("this figure needs class labels, and the dataset has none")
    labels: Labels = data.test_labels.numpy()
    return labels, list(data.class_names) or [str(i) for i in range(int(labels.max()) + 1)]


def _class_style(label: int) -> tuple[str, str]:
    colors, markers = style.CLASS_COLORS, style.CLASS_MARKERS
    return colors[label % len(colors)], markers[label // len(colors) % len(markers)]


def _class_handle(label: int, name: str) -> Line2D:
    color, marker = _class_style(label)
    return Line2D([], [], color=color, marker=marker, linestyle="", label=name)


def _scatter(panel: Axes, points: Points, labels: Labels, names: list[str]) -> None:
    """Draw points coloured by class, with the class name at the median of its points."""
    panel.grid(False)
    for label in np.unique(labels):
        color, marker = _class_style(int(label))
        of_class = points[labels == label]
        # Rasterised, because thousands of vector points make an SVG file of several megabytes.
        panel.scatter(
            of_class[:, 0],
            of_class[:, 1],
            s=3,
            c=color,
            marker=marker,
            lw=0,
            alpha=0.8,
            rasterized=True,
        )
    for label in np.unique(labels):
        x, y = np.median(points[labels == label], axis=0)
        panel.text(
            x,
            y,
            names[label] if len(names[label]) <= 3 else str(label),
            ha="center",
            va="center",
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )


@mpl.rc_context(style.STYLE)
def component_usage(source: FigureSource) -> Figure:
    """Mean probability of each component in each class, with a panel per model with components.

    Rows are classes, followed by the whole test set. Columns are components, the most used first. A
    model that clusters by class has one dark entry per row. A collapsed model has one dark column.

    Args:
        source: results of one dataset and latent dim.

    Raises:
        FigureError: if no model has components, the dataset has no classes, or a probability is not
            finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    usages = {}
    for model, run in source.runs_to_draw().items():
        data = source.data(model, run)
        codec = source.codec(model, run)
        try:
            probabilities = codec.component_probabilities(data.test_images)
        except MetricMissingError:
            continue
        if not np.isfinite(probabilities).all():
            raise FigureError(
                f"{run.record.key} cannot be drawn: its component probabilities are not all finite"
            )
        usages[model] = usage_by_class(probabilities, _classes(data)[0])
    if not usages:
        raise FigureError(
            f"none of {', '.join(source.models)} has components; see component_probabilities in "
            "docs/how-to/plugins.md"
        )
    names = [*_classes(data)[1], "all"]
    figure, panels = style.panels(len(usages), columns=2, height=0.6 + 0.16 * len(names))
    for panel, (model, usage) in zip(panels, usages.items(), strict=True):
        mean = usage[-1]
        effective = math.exp(-sum(p * math.log(p) for p in mean if p > 0))
        panel.set_title(f"{source.model_title(model)}: {effective:.1f} of {len(mean)} in use")
        mesh = panel.pcolormesh(usage, cmap="Blues", vmin=0, vmax=1, edgecolors="0.85")
        panel.set_yticks(np.arange(len(names)) + 0.5, names)
        panel.set_xticks(np.arange(len(mean)) + 0.5, [str(k + 1) for k in range(len(mean))])
        panel.invert_yaxis()
        panel.grid(False)
        panel.set_xlabel("component, by use")
        panel.set_ylabel("class")
    figure.colorbar(mesh, ax=panels, label="mean probability", shrink=0.8, pad=0.02)
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: use of the components by class"
    )
    return figure


def usage_by_class(probabilities: Codes, labels: Labels) -> npt.NDArray[np.float64]:
    """Mean component probabilities (C + 1, K) of each class and, in the last row, of all images.

    Columns are sorted by the last row, the most used component first.

    Args:
        probabilities: component probabilities (N, K); each row sums to 1.
        labels: class labels (N,) from 0 to C - 1.
    """
    rows = [
        probabilities[labels == label].mean(axis=0, dtype=np.float64)
        for label in range(int(labels.max()) + 1)
    ]
    usage = np.array([*rows, probabilities.mean(axis=0, dtype=np.float64)])
    return usage[:, np.argsort(-usage[-1], kind="stable")]
