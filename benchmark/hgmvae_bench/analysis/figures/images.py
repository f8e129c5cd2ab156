"""Figures of images that trained models make."""

from __future__ import annotations

import textwrap

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource
from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.outputs import ModelCodec
from hgmvae_bench.plugins.image_data import Codes
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.seeding import derive_seed

Pixels = npt.NDArray[np.uint8]

GAP = 2
"""White pixels between images."""

FRAME = "#D55E00"
"""Colour of the frame around originals."""

LABEL_WIDTH = 1.35
"""Inches for the names of rows."""

LABEL_LETTERS = 14
"""That a line of a model's name may have there."""

TRAVERSED = 10
"""Latent dimensions that a traversal shows: those in which the codes vary most."""

REACH = 3.0
"""Standard deviations that a traversal goes to either side."""


@mpl.rc_context(style.STYLE)
def reconstructions(source: FigureSource, n_images: int = 10) -> Figure:
    """Fig. 5a: rows of test images, and below each of them its reconstruction by every model.

    Reconstructions are decoded from the deterministic codes, as the metrics see them. A few models
    leave room for several such blocks.

    Args:
        source: of one dataset and latent dimension.
        n_images: images in a row.

    Raises:
        FigureError: if no model has a complete run.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights were not kept.
        hgmvae_bench.data.DataError: if the dataset is not there.
    """
    runs = source.runs_to_draw()
    data = _data(source, runs)
    n_blocks = max(1, 6 // (1 + len(runs)))
    originals = data.test_images[representatives(data, n_images * n_blocks)]
    rows = {"original": originals}
    for model, run in runs.items():
        name = textwrap.fill(source.model_title(model), LABEL_LETTERS)
        rows[name] = source.codec(model, run).reconstruct(originals)
    figure, panels = _picture(n_images, len(rows) * n_blocks, n_blocks)
    blocks = zip(*(images.split(n_images) for images in rows.values()), strict=True)
    for panel, block in zip(panels, blocks, strict=False):
        show_rows(panel, dict(zip(rows, block, strict=True)), n_images)
    _title(figure, source, runs, "test images and their reconstructions")
    return figure


@mpl.rc_context(style.STYLE)
def manifold(source: FigureSource, side: int = 8) -> Figure:
    """Fig. 5b: the images between the codes of four test images, interpolated bilinearly.

    The four images themselves stand beside the corners that they are reconstructed in.

    Args:
        source: of one dataset, latent dimension and model.
        side: images along each side.

    Raises:
        FigureError: if the model has no complete run, or the test set fewer than four images.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights were not kept.
        hgmvae_bench.data.DataError: if the dataset is not there.
    """
    (model, run), data, codec = _only_model(source)
    places = representatives(data, 4)
    if len(places) < 4:
        raise FigureError(f"{source.dataset}: the test set has fewer than four images")
    corners = data.test_images[places]
    images = codec.decode(torch.from_numpy(interpolate(codec.encode(corners), side)))

    tile = np.array(corners.shape[-2:]) + GAP
    picture = np.full((side * tile[0] - GAP, (side + 2) * tile[1] - GAP, 3), 255, np.uint8)
    picture[:, tile[1] : -tile[1]] = mosaic(images, side)
    figure = style.new_figure(style.WIDTH, style.WIDTH * side / (side + 2) + style.HEADROOM)
    panel = figure.subplots()
    for corner, image in enumerate(corners):
        below, right = divmod(corner, 2)
        top, left = below * (side - 1) * tile[0], right * (side + 1) * tile[1]
        height, width = image.shape[-2:]
        picture[top : top + height, left : left + width] = mosaic(image[None], 1)
        frame = Rectangle(
            (left - 0.5, top - 0.5), width, height, fill=False, color=FRAME, lw=1.5, clip_on=False
        )
        panel.add_patch(frame)
    show(panel, picture)
    panel.set_xlabel(
        f"framed: test images {', '.join(map(str, places))}; beside each, its reconstruction"
    )
    _title(figure, source, {model: run}, "between the codes of four test images")
    return figure


@mpl.rc_context(style.STYLE)
def traversals(source: FigureSource, image: int = 0, n_steps: int = 9) -> Figure:
    """Fig. 6: what one dimension of the code does to an image, a row for each dimension.

    All other dimensions stay as they are in the image's code; the one goes from -3 to 3 standard
    deviations of the test codes around their mean. Where there are more than ten dimensions, the
    ten in which the test codes vary most are shown, those first that vary most.

    Args:
        source: of one dataset, latent dimension and model.
        image: place of the image in the test set.
        n_steps: images in a row.

    Raises:
        FigureError: if the model has no complete run, or there is no such image.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights were not kept.
        hgmvae_bench.data.DataError: if the dataset is not there.
    """
    (model, run), data, codec = _only_model(source)
    if not 0 <= image < len(data.test_images):
        raise FigureError(
            f"test image {image} is asked for, but there are {len(data.test_images):,} (from 0)"
        )
    codes = source.codes(run)
    original = data.test_images[image : image + 1]
    code = codec.encode(original)[0]
    deviations = codes.std(axis=0)
    dimensions = np.argsort(-deviations, kind="stable")[:TRAVERSED]
    steps = np.linspace(-REACH, REACH, n_steps)
    both = torch.cat([original, codec.decode(torch.from_numpy(code[None]))])
    rows = {"image, reconstruction": both}
    for d in dimensions:
        name = f"dimension {d + 1} (sd {deviations[d]:.2g})"
        rows[name] = codec.decode(torch.from_numpy(traverse(code, codes, d, steps)))

    figure, (panel,) = _picture(n_steps, len(rows), 1)
    show_rows(panel, rows, n_steps)
    width = original.shape[-1]
    panel.set_xticks(
        np.arange(n_steps) * (width + GAP) + width / 2, [f"{step:g}" for step in steps]
    )
    panel.set_xlabel("value of the dimension: standard deviations from the mean of the test codes")
    what = f"traversals from test image {image}"
    if len(dimensions) < len(code):
        what += f", {len(dimensions)} of {len(code)} dimensions"
    _title(figure, source, {model: run}, what)
    return figure


@mpl.rc_context(style.STYLE)
def samples(source: FigureSource, side: int = 6) -> Figure:
    """Images decoded from each model's prior, beside test images.

    They are the first of those that metrics of samples are computed on.

    Args:
        source: of one dataset and latent dimension.
        side: images along each side of a panel.

    Raises:
        FigureError: if no model has a complete run.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights were not kept.
        hgmvae_bench.data.DataError: if the dataset is not there.
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
            style.note(panel, source.missing_reason(model))
            continue
        codec = source.codec(model, run)
        seed = derive_seed(run.record.key, "samples")
        latents = codec.sample_latents(len(data.test_images), seed)
        show(panel, mosaic(codec.decode(latents[: side**2]), side))
    _title(figure, source, runs, "samples from the prior")
    return figure


def representatives(data: ImageData, count: int) -> list[int]:
    """Places of ``count`` test images: the first of each class, then the second of each, and so on.

    Without classes, the first ``count``. Fewer if there are fewer.
    """
    if data.test_labels is None:
        return list(range(min(count, len(data.test_images))))
    labels = data.test_labels.numpy()
    turn = np.zeros_like(labels)
    for label in np.unique(labels):
        mine = labels == label
        turn[mine] = np.arange(mine.sum())
    return [int(place) for place in np.lexsort((labels, turn))[:count]]


def interpolate(corners: Codes, side: int) -> Codes:
    """Codes (side², L) between four codes (4, L), row by row.

    The corners are, in order, top left, top right, bottom left and bottom right.
    """
    share = np.linspace(0, 1, side)
    down, across = np.meshgrid(share, share, indexing="ij")
    weights = np.stack(
        [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    )
    codes: Codes = np.einsum("cij,cl->ijl", weights, corners).reshape(side**2, -1)
    return codes.astype(np.float32)


def traverse(code: Codes, codes: Codes, dimension: int, steps: npt.NDArray[np.float64]) -> Codes:
    """The code (L,) once for each step (S, L), with one dimension at mean + step · deviation.

    Args:
        code: where the other dimensions stay.
        codes: (N, L), whose mean and standard deviation are meant.
        dimension: from 0.
        steps: (S,) in standard deviations.
    """
    traversed = np.repeat(code[None], len(steps), axis=0)
    mean, deviation = codes[:, dimension].mean(), codes[:, dimension].std()
    traversed[:, dimension] = mean + steps * deviation
    return traversed


def mosaic(images: Tensor, columns: int) -> Pixels:
    """uint8 images (N, C, H, W) as one picture (H', W', 3), row by row, white between them."""
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
    """Draw pixels as they are, without axes."""
    panel.imshow(picture, interpolation="none")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def show_rows(panel: Axes, rows: dict[str, Tensor], columns: int) -> None:
    """Draw a row of images (N, C, H, W) for each name, of at most ``columns`` images."""
    pictures = [mosaic(images, columns) for images in rows.values()]
    gap = np.full((GAP, *pictures[0].shape[1:]), 255, np.uint8)
    height = len(pictures[0])
    stacked = [part for picture in pictures for part in (picture, gap)][:-1]
    show(panel, np.concatenate(stacked))
    panel.set_yticks(np.arange(len(rows)) * (height + GAP) + height / 2, list(rows))


def _picture(columns: int, rows: int, n_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` rows of square images in all, with room for names at the left."""
    tile = (style.WIDTH - LABEL_WIDTH) / columns
    figure = style.new_figure(style.WIDTH, tile * rows + style.HEADROOM)
    # The layout leaves the names a little less than they take.
    figure.set_layout_engine("constrained", w_pad=0.12)
    return figure, list(figure.subplots(n_panels, 1, squeeze=False).ravel())


def _data(source: FigureSource, runs: dict[str, StoredRun]) -> ImageData:
    return next(source.data(model, run) for model, run in runs.items())


def _only_model(source: FigureSource) -> tuple[tuple[str, StoredRun], ImageData, ModelCodec]:
    model = source.model
    run = source.runs_to_draw()[model]
    return (model, run), source.data(model, run), source.codec(model, run)


def _title(figure: Figure, source: FigureSource, runs: dict[str, StoredRun], what: str) -> None:
    who = f", {source.model_title(next(iter(runs)))}" if len(source.models) == 1 else ""
    seeds = sorted({run.record.seed for run in runs.values()})
    which = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    figure.suptitle(f"{source.dataset_title()}, L = {source.latent_dim}{who}: {what} ({which})")
