"""Figures of images that trained models generate."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource, format_seeds
from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec
from hgmvae_bench.plugins.image_data import Codes
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.seeding import derive_seed

Pixels = npt.NDArray[np.uint8]

GAP = 2
"""Number of white pixels between images."""

FRAME = "#D55E00"
"""Colour of the frame around original images."""

LABEL_WIDTH = 1.35
"""Width of the row labels in inches."""

LABEL_CHARACTERS = 14
"""Maximum number of characters in a line of a row label."""

TRAVERSED_DIMENSIONS = 10
"""Maximum number of latent dimensions in a traversal."""

TRAVERSAL_RANGE = 3.0
"""Range of a traversal in standard deviations to either side of the mean."""


@mpl.rc_context(style.STYLE)
def reconstructions(source: FigureSource, n_images: int = 10) -> Figure:
    """Fig. 5a: a row of test images above their reconstructions, with a row for each model.

    Images are decoded from the deterministic codes, which the metrics use too. With up to two
    models the figure shows several such blocks of further images.

    Args:
        source: results of one dataset and latent dim.
        n_images: number of images in a row.

    Raises:
        FigureError: if no model has a complete run, or an image is not finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    runs = source.runs_to_draw()
    data = _data(source, runs)
    n_blocks = max(1, 6 // (1 + len(runs)))
    originals = data.test_images[representatives(data, n_images * n_blocks)]
    labels, rows = ["original"], [originals]
    for model, run in runs.items():
        labels.append(textwrap.fill(source.model_title(model), LABEL_CHARACTERS))
        codes = source.codec(model, run).encode(originals)
        rows.append(_decode(source, model, run, codes))
    figure, panels = _picture(n_images, len(rows) * n_blocks, n_blocks)
    blocks = zip(*(images.split(n_images) for images in rows), strict=True)
    for panel, block in zip(panels, blocks, strict=False):
        show_rows(panel, labels, block, n_images)
    _title(figure, source, runs, "test images and their reconstructions")
    return figure


@mpl.rc_context(style.STYLE)
def manifold(source: FigureSource, side: int = 8) -> Figure:
    """Fig. 5b: images decoded between the codes of four test images, by bilinear interpolation.

    Each original is shown, framed, beside the corner with its reconstruction.

    Args:
        source: results of one dataset, latent dim and model.
        side: number of images along each side.

    Raises:
        FigureError: if the model has no complete run, the test set has fewer than four images, or
            an image is not finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    (model, run), data, codec = _only_model(source)
    indices = representatives(data, 4)
    if len(indices) < 4:
        raise FigureError(f"{source.dataset}: the test set has fewer than four images")
    corners = data.test_images[indices]
    images = _decode(source, model, run, interpolate(codec.encode(corners), side))

    tile = np.array(corners.shape[-2:]) + GAP
    picture = np.full((side * tile[0] - GAP, (side + 2) * tile[1] - GAP, 3), 255, np.uint8)
    picture[:, tile[1] : -tile[1]] = mosaic(images, side)
    figure = style.new_figure(style.WIDTH, style.WIDTH * side / (side + 2) + style.HEADROOM)
    panel = figure.subplots()
    for corner, image in enumerate(corners):
        below, right = divmod(corner, 2)
        _insert_framed(
            panel, picture, image, below * (side - 1) * tile[0], right * (side + 1) * tile[1]
        )
    show(panel, picture)
    panel.set_xlabel(
        f"framed: test images {', '.join(map(str, indices))}; beside each, its reconstruction"
    )
    _title(figure, source, {model: run}, "between the codes of four test images")
    return figure


@mpl.rc_context(style.STYLE)
def traversals(source: FigureSource, image: int = 0, n_steps: int = 9) -> Figure:
    """Fig. 6: traversals of an image's code, with a row for each dimension.

    One dimension takes values from -3 to 3 standard deviations around the mean of the test codes;
    the other dimensions keep the values of the image's code. At most ten dimensions are shown,
    those with the largest standard deviation first.

    Args:
        source: results of one dataset, latent dim and model.
        image: index of the image in the test set.
        n_steps: number of images in a row.

    Raises:
        FigureError: if the model has no complete run, the test set has no such image, or an image
            or a code is not finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    codes = source.codes(source.runs_to_draw()[source.model])
    deviations = codes.std(axis=0)
    dimensions = np.argsort(-deviations, kind="stable")[:TRAVERSED_DIMENSIONS]
    rows = {f"dimension {d + 1} (sd {deviations[d]:.2g})": int(d) for d in dimensions}
    content = f"traversals from test image {image}"
    if len(dimensions) < codes.shape[1]:
        content += f", {len(dimensions)} of {codes.shape[1]} dimensions"
    return draw_traversals(source, rows, content, image=image, n_steps=n_steps)


def draw_traversals(
    source: FigureSource, dimensions: dict[str, int], content: str, *, image: int, n_steps: int
) -> Figure:
    """Draw traversals of an image's code, with a row for each label and dimension.

    Args:
        source: results of one dataset, latent dim and model.
        dimensions: index of the dimension of each row, from 0, by its label.
        content: end of the figure's title.
        image: index of the image in the test set.
        n_steps: number of images in a row.

    Raises:
        FigureError: if the model has no complete run, the test set has no such image, or an image
            or a code is not finite.
    """
    (model, run), data, codec = _only_model(source)
    if not 0 <= image < len(data.test_images):
        raise FigureError(
            f"test image {image} does not exist: the test set has {len(data.test_images):,} "
            "images, numbered from 0"
        )
    codes = source.codes(run)
    original = data.test_images[image : image + 1]
    code = codec.encode(original)[0]
    steps = np.linspace(-TRAVERSAL_RANGE, TRAVERSAL_RANGE, n_steps)
    rows = [torch.cat([original, _decode(source, model, run, code[None])])]
    rows += [
        _decode(source, model, run, traverse(code, codes, dimension, steps))
        for dimension in dimensions.values()
    ]

    figure, (panel,) = _picture(n_steps, len(rows), 1)
    show_rows(panel, ["image, reconstruction", *dimensions], rows, n_steps)
    width = original.shape[-1]
    panel.set_xticks(
        np.arange(n_steps) * (width + GAP) + width / 2, [f"{step:g}" for step in steps]
    )
    panel.set_xlabel("value of the dimension: standard deviations from the mean of the test codes")
    _title(figure, source, {model: run}, content)
    return figure


@mpl.rc_context(style.STYLE)
def samples(source: FigureSource, side: int = 6) -> Figure:
    """Test images, and samples from the prior of each model.

    The samples are the first of those that the metrics of samples are computed from.

    Args:
        source: results of one dataset and latent dim.
        side: number of images along each side of a panel.

    Raises:
        FigureError: if no model has a complete run, or an image is not finite.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights are missing or damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    runs = source.runs_to_draw()
    data = _data(source, runs)
    figure, panels = style.panels(
        len(source.models) + 1, columns=4, height=style.WIDTH / 4 + 0.1, headroom=0.3
    )
    show(panels[0], mosaic(data.test_images[representatives(data, side**2)], side))
    panels[0].set_title("test images")
    for panel, model in zip(panels[1:], source.models, strict=True):
        panel.set_title(source.model_title(model))
        run = runs.get(model)
        if run is None:
            style.show_reason(panel, source.missing_reason(model))
            continue
        codec = source.codec(model, run)
        seed = derive_seed(run.record.key, "samples")
        latents = codec.sample_latents(len(data.test_images), seed)[: side**2]
        show(panel, mosaic(_decode(source, model, run, latents), side))
    _title(figure, source, runs, "samples from the prior")
    return figure


def _insert_framed(panel: Axes, picture: Pixels, image: Tensor, top: int, left: int) -> None:
    """Copy an image (C, H, W) into a picture and draw a frame around it."""
    height, width = image.shape[-2:]
    picture[top : top + height, left : left + width] = mosaic(image[None], 1)
    frame = Rectangle(
        (left - 0.5, top - 0.5), width, height, fill=False, color=FRAME, lw=1.5, clip_on=False
    )
    panel.add_patch(frame)


def representatives(data: ImageData, count: int) -> list[int]:
    """Indices of up to ``count`` test images: the first of each class, then the second, and so on.

    Without labels these are the first ``count`` images.
    """
    if data.test_labels is None:
        return list(range(min(count, len(data.test_images))))
    labels = data.test_labels.numpy()
    index_in_class = np.zeros_like(labels)
    for label in np.unique(labels):
        of_class = labels == label
        index_in_class[of_class] = np.arange(of_class.sum())
    return [int(index) for index in np.lexsort((labels, index_in_class))[:count]]


def interpolate(corners: Codes, side: int) -> Codes:
    """Interpolate bilinearly between four codes (4, L); returns codes (side², L), row by row.

    The corners are top left, top right, bottom left and bottom right, in this order.
    """
    fraction = np.linspace(0, 1, side)
    down, across = np.meshgrid(fraction, fraction, indexing="ij")
    weights = np.stack(
        [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    )
    codes: Codes = np.einsum("cij,cl->ijl", weights, corners).reshape(side**2, -1)
    return codes.astype(np.float32)


def traverse(code: Codes, codes: Codes, dimension: int, steps: npt.NDArray[np.float64]) -> Codes:
    """Copies of a code (S, L) in which one dimension is set to mean + step · standard deviation.

    Args:
        code: code (L,) that is copied.
        codes: codes (N, L) that give the mean and the standard deviation.
        dimension: index of the dimension, from 0.
        steps: steps (S,) in standard deviations.
    """
    traversed = np.repeat(code[None], len(steps), axis=0)
    mean, deviation = codes[:, dimension].mean(), codes[:, dimension].std()
    traversed[:, dimension] = mean + steps * deviation
    return traversed


def mosaic(images: Tensor, columns: int) -> Pixels:
    """Arrange uint8 images (N, C, H, W) row by row in one picture (H', W', 3) with white gaps."""
    n_images, _, height, width = images.shape
    rows = -(-n_images // columns)
    picture = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8
    )
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        picture[top : top + height, left : left + width] = image
    return picture


def show(panel: Axes, picture: Pixels) -> None:
    """Draw a picture without axes or interpolation."""
    panel.imshow(picture, interpolation="none")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def show_rows(panel: Axes, labels: Sequence[str], rows: Sequence[Tensor], columns: int) -> None:
    """Draw a row of up to ``columns`` images (N, C, H, W) for each label."""
    pictures = [mosaic(images, columns) for images in rows]
    gap = np.full((GAP, *pictures[0].shape[1:]), 255, np.uint8)
    height = len(pictures[0])
    stacked = [part for picture in pictures for part in (picture, gap)][:-1]
    show(panel, np.concatenate(stacked))
    panel.set_yticks(np.arange(len(rows)) * (height + GAP) + height / 2, labels)


def _picture(columns: int, rows: int, n_panels: int) -> tuple[Figure, list[Axes]]:
    """Create a figure for ``rows`` rows of square images in total, with space for row labels."""
    tile = (style.WIDTH - LABEL_WIDTH) / columns
    figure = style.new_figure(style.WIDTH, tile * rows + style.HEADROOM)
    # Without this padding the layout cuts off the ends of the row labels.
    figure.set_layout_engine("constrained", w_pad=0.12)
    return figure, list(figure.subplots(n_panels, 1, squeeze=False).ravel())


def _decode(source: FigureSource, model: str, run: StoredRun, codes: Codes | Tensor) -> Tensor:
    """Decode codes or other latents (N, L) with a run's model to uint8 images (N, C, H, W).

    Raises:
        FigureError: if an image is not finite.
    """
    try:
        return source.codec(model, run).decode(torch.as_tensor(codes))
    except MetricMissingError as error:
        raise FigureError(f"{run.record.key} cannot be drawn: {error}") from error


def _data(source: FigureSource, runs: dict[str, StoredRun]) -> ImageData:
    return next(source.data(model, run) for model, run in runs.items())


def _only_model(source: FigureSource) -> tuple[tuple[str, StoredRun], ImageData, ModelCodec]:
    model = source.model
    run = source.runs_to_draw()[model]
    return (model, run), source.data(model, run), source.codec(model, run)


def _title(figure: Figure, source: FigureSource, runs: dict[str, StoredRun], content: str) -> None:
    model = f", {source.model_title(next(iter(runs)))}" if len(source.models) == 1 else ""
    seeds = format_seeds(runs.values())
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}{model}: {content} ({seeds})"
    )
