"""Mean ranks of the models over cells, with the critical difference (Demšar 2006, JMLR 7)."""

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
from hgmvae_bench.analysis.tables import ARROWS, build_table
from hgmvae_bench.grid import TableSpec
from hgmvae_bench.plugins.registry import METRICS

ALPHA = 0.05

SHIFT = 0.3
"""Rows that the marks of single blocks lie below the mean's."""


@dataclass(frozen=True)
class Ranks:
    """Models ranked by one metric in every dataset × latent dimension.

    Attributes:
        models: the names of the k models.
        by_block: ranks (N, k) from 1, the best; ties share their mean rank.
        p_value: Friedman's test that all models are alike.
        critical_difference: Nemenyi's at 5 % of independent blocks: mean ranks closer than this do
            not differ.
    """

    models: list[str]
    by_block: npt.NDArray[np.float64]
    p_value: float
    critical_difference: float


@mpl.rc_context(style.STYLE)
def mean_ranks(source: FigureSource, metrics: Sequence[str] | None = None) -> Figure:
    """A panel for each metric: every model's mean rank over datasets × latent dimensions.

    Bars reach half of Nemenyi's critical difference to either side: models whose bars do not
    overlap differ, as far as blocks are independent (datasets are, latent dims of one are not).
    Small strokes are the ranks in the single blocks. A model's value in a block is its mean over
    seeds; blocks in which a model has none are left out.

    Args:
        source: of any number of datasets.
        metrics: registered names; all of the grid's tables if None.

    Raises:
        FigureError: if no metric has three models and two blocks to rank.
        hgmvae_bench.analysis.tables.TableError: if values of a metric cannot be compared.
    """
    if metrics is None:
        tables = source.grid.spec.tables
        metrics = list(dict.fromkeys(metric for table in tables for metric in table.metrics))
    found = {
        metric: ranks for metric in metrics if (ranks := rank_models(source, metric)) is not None
    }
    if not found:
        raise FigureError(
            "ranks need a metric with values of three models or more in two datasets or latent "
            f"dimensions or more; looked at {', '.join(metrics)}"
        )
    most = max(len(ranks.models) for ranks in found.values())
    figure, panels = style.panels(len(found), columns=2, height=0.75 + 0.19 * most)
    for panel, (metric, ranks) in zip(panels, found.items(), strict=True):
        _draw(panel, source, ranks)
        plugin = METRICS[metric]
        panel.set_title(f"{plugin.title} {ARROWS[plugin.direction]}")
        panel.set_xlabel(
            f"mean rank, 1 is best (N = {len(ranks.by_block)}, p = {ranks.p_value:.2g})"
        )
    figure.suptitle(
        "Mean rank ± half of Nemenyi's critical difference (5 %); p of Friedman's test\n"
        f"over N datasets × latent dimensions, values are means over {_seeds(source)}"
    )
    return figure


def _seeds(source: FigureSource) -> str:
    seeds = source.grid.spec.seeds
    return "1 seed" if seeds == 1 else f"up to {seeds} seeds"


def rank_models(source: FigureSource, metric: str) -> Ranks | None:
    """Rank the models by one metric; None with fewer than three models or two blocks."""
    from scipy.stats import friedmanchisquare, rankdata

    blocks: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for names in source.cells:
        blocks[names.dataset, names.latent_dim][names.model] = math.nan
    for dataset, latent_dim in blocks:
        spec = TableSpec(
            name="ranks",
            title="ranks",
            datasets=[dataset],
            models=list(blocks[dataset, latent_dim]),
            latent_dims=[latent_dim],
            metrics=[metric],
            rows=["model"],
            columns=[],
        )
        for entry in build_table(source.grid, spec, source.runs.values()).entries:
            if entry.mean is None:
                del blocks[dataset, latent_dim][entry.model]
            else:
                blocks[dataset, latent_dim][entry.model] = entry.mean
    known = {model for block in blocks.values() for model in block}
    models = [model for model in source.models if model in known]
    whole = [[block[m] for m in models] for block in blocks.values() if block.keys() >= known]
    if len(models) < 3 or len(whole) < 2:
        return None
    values = np.array(whole) * (-1 if METRICS[metric].direction == "higher" else 1)
    by_block = rankdata(values, axis=1)
    alike = bool((by_block == by_block[:, :1]).all())
    return Ranks(
        models,
        by_block,
        p_value=1.0 if alike else float(friedmanchisquare(*values.T).pvalue),
        critical_difference=critical_difference(len(models), len(whole)),
    )


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
        look = style.series_style(source.model_positions[ranks.models[i]])
        each = ranks.by_block[:, i]
        panel.scatter(
            each, np.full(len(each), y + SHIFT), s=9, marker="|", color=look.color, alpha=0.6
        )
        panel.errorbar(
            means[i],
            y,
            xerr=ranks.critical_difference / 2,
            color=look.color,
            marker=look.marker,
            capsize=3,
        )
    panel.set_yticks(range(len(order)), [source.model_title(ranks.models[i]) for i in order])
    panel.invert_yaxis()
    # No limits: with few models or blocks, bars reach beyond the ranks that there are.
    panel.set_xticks(range(1, len(order) + 1))
