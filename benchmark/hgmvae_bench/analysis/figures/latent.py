"""Figures of the latent space: codes by class, and what the components are used for."""

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
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource
from hgmvae_bench.data import ImageData
from hgmvae_bench.plugins.image_data import Codes, Labels
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.utils.seeding import derive_seed

Points = npt.NDArray[np.float32]


@mpl.rc_context(style.STYLE)
def codes_by_class(source: FigureSource, max_points: int = 1000) -> Figure:
    """Fig. 4: a panel for each model, the stored test codes in the plane, coloured by class.

    Codes of more than two dimensions are projected by t-SNE (van der Maaten & Hinton 2008) with a
    seed that derives from the run; codes of two are drawn as they are.

    Args:
        source: of one dataset and latent dimension.
        max_points: so many test images at most, evenly spread over the test set.

    Raises:
        FigureError: if the dataset has no classes, or no model has a complete run.
        hgmvae_bench.storage.artifacts.ArtifactError: if the codes were not kept.
        hgmvae_bench.data.DataError: if the dataset, which has the classes, is not there.
    """
    runs = source.runs_to_draw()
    columns = min(3, len(source.models))
    figure, panels = style.panels(
        len(source.models), columns=columns, height=min(style.WIDTH / columns, 3.3)
    )
    shown = total = 0
    names: list[str] = []
    for panel, model in zip(panels, source.models, strict=True):
        panel.set_title(source.model_title(model))
        run = runs.get(model)
        if run is None:
            style.note(panel, source.missing_reason(model))
            continue
        labels, names = _classes(source.data(model, run))
        codes = source.codes(run)
        total = len(codes)
        places = np.linspace(0, total - 1, min(max_points, total)).round().astype(int)
        shown = len(places)
        panel.grid(False)
        if not codes.std(axis=0).any():
            style.note(panel, "all test images have the same code")
            continue
        points = project(codes[places], derive_seed(run.record.key, "t-sne"))
        _scatter(panel, points, labels[places], names)
        if codes.shape[1] == 2:
            panel.set_xlabel("code, dimension 1")
            panel.set_ylabel("code, dimension 2")
        else:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_xlabel("t-SNE 1")
            panel.set_ylabel("t-SNE 2")
    seeds = sorted({run.record.seed for run in runs.values()})
    figure.legend(
        handles=[_class_mark(label, name) for label, name in enumerate(names)],
        loc="outside lower center",
        ncols=style.fitting_columns(names, 10),
        columnspacing=1,
        handletextpad=0.2,
    )
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: codes of {shown:,} of {total:,} "
        f"test images by class, {'seed' if len(seeds) == 1 else 'seeds'} "
        f"{', '.join(map(str, seeds))}"
    )
    return figure


def project(codes: Codes, seed: int) -> Points:
    """Codes (N, L) in the plane (N, 2): by t-SNE, or as they are if L is 2."""
    if codes.shape[1] == 2:
        return codes
    from sklearn.manifold import TSNE

    # As scikit-learn advises: perplexity 30, less where there are few points.
    perplexity = min(30.0, (len(codes) - 1) / 3)
    # One dimension has no two principal components to begin with.
    begin = "pca" if codes.shape[1] > 1 else "random"
    points: Points = TSNE(
        perplexity=perplexity, init=begin, random_state=seed, n_jobs=1
    ).fit_transform(codes)
    return points


def _classes(data: ImageData) -> tuple[Labels, list[str]]:
    """Labels (N,) of the test images and the classes' names."""
    if data.test_labels is None:
        raise FigureError("this figure shows classes, and the dataset has none")
    labels: Labels = data.test_labels.numpy()
    return labels, list(data.class_names) or [str(i) for i in range(int(labels.max()) + 1)]


def _class_look(label: int) -> tuple[str, str]:
    colors, markers = style.CLASS_COLORS, style.CLASS_MARKERS
    return colors[label % len(colors)], markers[label // len(colors) % len(markers)]


def _class_mark(label: int, name: str) -> Line2D:
    color, marker = _class_look(label)
    return Line2D([], [], color=color, marker=marker, linestyle="", label=name)


def _scatter(panel: Axes, points: Points, labels: Labels, names: list[str]) -> None:
    """Points by class, with the class's name at their median: colour alone says nothing."""
    for label in np.unique(labels):
        color, marker = _class_look(int(label))
        mine = points[labels == label]
        # Thousands of points as vectors would make SVG files of megabytes.
        panel.scatter(
            mine[:, 0], mine[:, 1], s=3, c=color, marker=marker, lw=0, alpha=0.8, rasterized=True
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
    """For each model with components: the mean probability of each component in each class.

    Rows are classes and the whole test set, columns components, the most used first. A model that
    clusters by class has one dark field a row; one that has collapsed has one dark column.

    Args:
        source: of one dataset and latent dimension.

    Raises:
        FigureError: if no model of these results has components, or the dataset no classes.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights were not kept.
        hgmvae_bench.data.DataError: if the dataset is not there.
    """
    usages = {}
    for model, run in source.runs_to_draw().items():
        data = source.data(model, run)
        codec = source.codec(model, run)
        try:
            probabilities = codec.component_probabilities(data.test_images)
        except MetricMissingError:
            continue
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
        picture = panel.pcolormesh(usage, cmap="Blues", vmin=0, vmax=1, edgecolors="0.85")
        panel.set_yticks(np.arange(len(names)) + 0.5, names)
        panel.set_xticks(np.arange(len(mean)) + 0.5, [str(k + 1) for k in range(len(mean))])
        panel.invert_yaxis()
        panel.grid(False)
        panel.set_xlabel("component, by use")
        panel.set_ylabel("class")
    figure.colorbar(picture, ax=panels, label="mean probability", shrink=0.8, pad=0.02)
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: use of the components by class"
    )
    return figure


def usage_by_class(probabilities: Codes, labels: Labels) -> npt.NDArray[np.float64]:
    """Mean component probabilities (classes + 1, K): of each class, and in the last row of all.

    Columns are sorted by the last row, the most used component first.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,) classes from 0.
    """
    rows = [
        probabilities[labels == label].mean(axis=0, dtype=np.float64)
        for label in range(int(labels.max()) + 1)
    ]
    usage = np.array([*rows, probabilities.mean(axis=0, dtype=np.float64)])
    return usage[:, np.argsort(-usage[-1], kind="stable")]
