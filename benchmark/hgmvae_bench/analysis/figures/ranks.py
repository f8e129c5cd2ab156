"""Mean ranks of the models, with Nemenyi's critical difference (Demšar 2006, JMLR 7)."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource
from hgmvae_bench.analysis.stats import ALPHA
from hgmvae_bench.analysis.tables import build_table, metric_titles
from hgmvae_bench.grid import TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.utils.text import pluralize

BLOCK_OFFSET = 0.3
"""Vertical distance, in rows, between a mean rank and the ranks in single blocks."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of the models by one metric in every block (dataset × latent dim).

    Attributes:
        models: names of the k models.
        by_block: ranks (N, k), 1 for the best; ties share their mean rank.
        p_value: p-value of Friedman's test of equal models.
        critical_difference: smallest difference of mean ranks that is significant at 5 % by
            Nemenyi's test, for independent blocks.
    """

    models: list[str]
    by_block: npt.NDArray[np.float64]
    p_value: float
    critical_difference: float


@mpl.rc_context(style.STYLE)
def mean_ranks(source: FigureSource, metrics: Sequence[str] | None = None) -> Figure:
    """Mean rank of each model over datasets × latent dims, with a panel for each metric.

    Bars extend half of Nemenyi's critical difference to either side. Models whose bars do not
    overlap differ if blocks are independent; latent dims of one dataset are not. Small strokes are
    the ranks in single blocks. A model's value in a block is its mean over seeds. Blocks in which a
    model has no value are left out.

    Args:
        source: results of any number of datasets.
        metrics: registered metric names; None means all metrics of the grid's tables.

    Raises:
        FigureError: if no metric has at least three models in two blocks.
    """
    if metrics is None:
        tables = source.grid.spec.tables
        metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    found = {
        metric: ranks for metric in metrics if (ranks := rank_models(source, metric)) is not None
    }
    if not found:
        raise FigureError(
            "ranks need a metric with values of at least three models in at least two datasets or "
            f"latent dims; none of {', '.join(metrics)} has them"
        )
    n_models = max(len(ranks.models) for ranks in found.values())
    figure, panels = style.panels(len(found), columns=2, height=0.75 + 0.19 * n_models)
    titles = metric_titles(found, " ")
    for panel, (metric, ranks) in zip(panels, found.items(), strict=True):
        _draw(panel, source, ranks)
        panel.set_title(titles[metric])
        panel.set_xlabel(
            f"mean rank, 1 is best (N = {len(ranks.by_block)}, p = {ranks.p_value:.2g})"
        )
    figure.suptitle(
        "Mean rank ± half of Nemenyi's critical difference (5 %); p of Friedman's test\n"
        f"over N datasets × latent dimensions, values are means over {_format_seeds(source)}"
    )
    return figure


def _format_seeds(source: FigureSource) -> str:
    seeds = source.grid.spec.seeds
    return f"{'' if seeds == 1 else 'up to '}{pluralize(seeds, 'seed')}"


def rank_models(source: FigureSource, metric: str) -> Ranks | None:
    """Rank the models by one metric; None with fewer than three models or two blocks.

    It is None for a neutral metric, too.
    """
    from scipy.stats import friedmanchisquare, rankdata

    blocks = _mean_values(source, metric)
    with_value = {model for block in blocks.values() for model in block}
    models = [model for model in source.models if model in with_value]
    complete = [
        [block[m] for m in models] for block in blocks.values() if block.keys() >= with_value
    ]
    direction = METRICS[metric].direction
    if len(models) < 3 or len(complete) < 2 or direction == "neutral":
        return None
    values = np.array(complete) * (-1 if direction == "higher" else 1)
    by_block = rankdata(values, axis=1)
    all_equal = bool((by_block == by_block[:, :1]).all())
    return Ranks(
        models,
        by_block,
        p_value=1.0 if all_equal else float(friedmanchisquare(*values.T).pvalue),
        critical_difference=critical_difference(len(models), len(complete)),
    )


def _mean_values(source: FigureSource, metric: str) -> dict[tuple[str, int], dict[str, float]]:
    """Means over seeds by dataset and latent dim, then by model."""
    models: dict[tuple[str, int], list[str]] = defaultdict(list)
    for names in source.cells:
        models[names.dataset, names.latent_dim].append(names.model)
    blocks = {}
    for (dataset, latent_dim), of_block in models.items():
        spec = TableSpec(
            name="ranks",
            title="ranks",
            datasets=[dataset],
            models=of_block,
            latent_dims=[latent_dim],
            metrics=[metric],
            rows=["model"],
            columns=["metric"],
        )
        entries = build_table(source.grid, spec, source.runs.values()).entries
        blocks[dataset, latent_dim] = {
            entry.model: entry.mean for entry in entries if entry.mean is not None
        }
    return blocks


@functools.cache
def critical_difference(n_models: int, n_blocks: int) -> float:
    """Nemenyi's critical difference of mean ranks at 5 % (Demšar 2006, section 3.2.2)."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - ALPHA, n_models, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(n_models * (n_models + 1) / (6 * n_blocks))


def _draw(panel: Axes, source: FigureSource, ranks: Ranks) -> None:
    means = ranks.by_block.mean(axis=0)
    order = np.argsort(means, kind="stable")
    for y, i in enumerate(order):
        series = style.series_style(source.model_positions[ranks.models[i]])
        in_blocks = ranks.by_block[:, i]
        panel.scatter(
            in_blocks,
            np.full(len(in_blocks), y + BLOCK_OFFSET),
            s=9,
            marker="|",
            color=series.color,
            alpha=0.6,
        )
        panel.errorbar(
            means[i],
            y,
            xerr=ranks.critical_difference / 2,
            color=series.color,
            marker=series.marker,
            capsize=3,
        )
    panel.set_yticks(range(len(order)), [source.model_title(ranks.models[i]) for i in order])
    panel.invert_yaxis()
    # Set no axis limits: with few models or blocks, bars extend beyond the range of ranks.
    panel.set_xticks(range(1, len(order) + 1))
