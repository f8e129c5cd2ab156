"""Figure of traversals, ordered by the factor of variation that each dimension encodes."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.images import TRAVERSED_DIMENSIONS, draw_traversals
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource
from hgmvae_bench.evaluation.metrics.factor_scores import entropies, mutual_information
from hgmvae_bench.plugins.image_data import Codes

ENCODES = 0.05
"""Minimum share of a factor's entropy that a dimension which encodes it has."""


class EncodedFactor(NamedTuple):
    """Factor on which a dimension has the most information.

    Attributes:
        dimension: index of the dimension, from 0.
        factor: index of the factor; None if the dimension encodes none.
        share: mutual information by the factor's entropy, in [0, 1].
    """

    dimension: int
    factor: int | None
    share: float


@mpl.rc_context(style.STYLE)
def traversals_by_factor(source: FigureSource, image: int = 0, n_steps: int = 9) -> Figure:
    """Traversals of an image's code, the dimensions ordered by the factor that they encode.

    A dimension encodes the factor with the largest mutual information by the factor's entropy, if
    that is at least 0.05. Dimensions of the same factor are next to each other, the most
    informative first; dimensions that encode no factor come last. At most ten are shown.

    Args:
        source: results of one dataset, latent dim and model.
        image: index of the image in the test set.
        n_steps: number of images in a row.

    Raises:
        FigureError: if the dataset has no factors, the model has no complete run, or the test set
            no such image.
        hgmvae_bench.storage.artifacts.ArtifactError: if the weights or codes are missing or
            damaged.
        hgmvae_bench.data.DataError: if the dataset is missing.
    """
    run = source.runs_to_draw()[source.model]
    factors = source.data(source.model, run).factors
    if factors is None:
        raise FigureError(f"{source.dataset_title()} has no factors of variation")
    encoded = encoded_factors(source.codes(run), factors.test.numpy())[:TRAVERSED_DIMENSIONS]
    rows = {}
    for dimension, factor, share in encoded:
        label = "no factor" if factor is None else f"{factors.names[factor]} {share:.2f}"
        rows[f"{label} (dim {dimension + 1})"] = dimension
    content = f"traversals by factor from test image {image}"
    return draw_traversals(source, rows, content, image=image, n_steps=n_steps)


def encoded_factors(codes: Codes, factors: npt.NDArray[np.int64]) -> list[EncodedFactor]:
    """Return the factor of every dimension, ordered by factor and then by falling share.

    Args:
        codes: codes (N, L).
        factors: value numbers (N, F). Factors with a single value are encoded by no dimension.
    """
    entropy = entropies(factors)
    information = mutual_information(codes.astype(np.float64), factors)
    shares = np.divide(information, entropy, out=np.zeros_like(information), where=entropy > 0)
    encoded = []
    for dimension, row in enumerate(shares):
        factor, share = int(row.argmax()), float(row.max())
        encoded.append(EncodedFactor(dimension, factor if share >= ENCODES else None, share))
    n_factors = factors.shape[1]
    return sorted(
        encoded, key=lambda each: (n_factors if each.factor is None else each.factor, -each.share)
    )
