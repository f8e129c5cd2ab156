"""Curves over latent dims and over epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hgmvae_bench.analysis.comparison import published_value
from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import CellNames, FigureError, FigureSource
from hgmvae_bench.analysis.table_entries import TableEntry
from hgmvae_bench.analysis.tables import build_table, metric_titles
from hgmvae_bench.grid import Grid, TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.utils.text import pluralize


class TermLabel(NamedTuple):
    """Title and unit of a loss term."""

    title: str
    unit: str


TERM_LABELS = {
    "loss": TermLabel("Loss", "per image"),
    "recon_loss": TermLabel("Reconstruction", "per image"),
    "reg_loss": TermLabel("KL to the prior", "nats"),
    "mmd_loss": TermLabel("MMD", "no unit"),
    "w_prior": TermLabel("w prior", "nats"),
    "z_prior": TermLabel("z prior", "nats"),
    "mutual_information": TermLabel("Mutual information", "nats"),
    "total_correlation_components": TermLabel("TC of components", "nats"),
    "total_correlation_dimensions": TermLabel("TC of dimensions", "nats"),
    "dimension_kl": TermLabel("Dimension-wise KL", "nats"),
    "conditional_prior": TermLabel("Conditional prior", "nats"),
    "fisher": TermLabel("Fisher", "no unit"),
}
"""Labels of the suite's own loss terms. Other terms keep the name that the model gives them."""


@mpl.rc_context(style.STYLE)
def metrics_by_latent_dim(
    source: FigureSource, metrics: Sequence[str] = ("sc", "ch", "db")
) -> Figure:
    """Fig. 3: metrics against the latent dim, with a panel for each metric and a line per model.

    Lines are means over the seeds that have a value, as in the tables; bands are ± one standard
    deviation. A latent dim without a value leaves a gap. A metric without any value gets no panel.
    Hollow markers show the paper's values for the same dataset, model and latent dim.

    Args:
        source: results of one dataset.
        metrics: registered metric names.

    Raises:
        FigureError: if no run of the dataset has any of the metrics.
    """
    latent_dims = sorted({names.latent_dim for names in source.cells})
    entries = _entries(source, metrics, latent_dims)
    with_value = [entry for entry in entries if entry.n]
    if not with_value:
        evaluate = f"compute them with `hgmvae-bench evaluate --metrics {','.join(metrics)}`"
        raise FigureError(
            f"no run on {source.dataset} has a value of {', '.join(metrics)}; "
            f"{source.retry_hint() or evaluate}"
        )
    shown = [metric for metric in metrics if any(entry.metric == metric for entry in with_value)]
    figure, panels = style.panels(len(shown), columns=3, height=2.2)
    titles = metric_titles(shown, " ")
    any_published = False
    for panel, metric in zip(panels, shown, strict=True):
        of_metric = [entry for entry in entries if entry.metric == metric]
        any_published |= _draw_models(panel, source, of_metric)
        plugin = METRICS[metric]
        panel.set_title(titles[metric])
        better = "" if plugin.direction == "neutral" else f" ({plugin.direction} is better)"
        panel.set_ylabel(f"{plugin.title}{better}")
        panel.set_xlabel("latent dimension L")
        style.log2_x_axis(panel, latent_dims)
    if any_published:
        panels[-1].plot([], [], label="hollow: as published", **style.hollow_markers(style.NEUTRAL))
    style.legend(figure, panels)
    seeds = _format_seed_counts(with_value)
    figure.suptitle(f"{source.dataset_title()}: mean ± standard deviation over {seeds}")
    return figure


def _entries(
    source: FigureSource, metrics: Sequence[str], latent_dims: list[int]
) -> list[TableEntry]:
    """Aggregated values of the source's cells, in the order of metrics, latent dims and models."""
    spec = TableSpec(
        name="figure",
        title="figure",
        datasets=[source.dataset],
        models=source.models,
        latent_dims=latent_dims,
        metrics=list(metrics),
        rows=["metric", "model"],
        columns=["latent_dim"],
    )
    return [
        entry
        for entry in build_table(source.grid, spec, source.runs.values()).entries
        if CellNames(entry.dataset, entry.model, entry.latent_dim) in source.cells
    ]


def _draw_models(panel: Axes, source: FigureSource, entries: list[TableEntry]) -> bool:
    """Draw each model that has a value; return whether published values were drawn."""
    any_published = False
    for model in source.models:
        of_model = [entry for entry in entries if entry.model == model]
        if any(entry.n for entry in of_model):
            title = source.model_title(model)
            series = style.series_style(source.model_positions[model])
            _draw_line_with_band(panel, of_model, title, series)
            any_published |= _draw_published(panel, source.grid, of_model, title, series)
    return any_published


def _draw_line_with_band(
    panel: Axes, entries: list[TableEntry], label: str, series: style.SeriesStyle
) -> None:
    x = [entry.latent_dim for entry in entries]
    mean = np.array([math.nan if entry.mean is None else entry.mean for entry in entries])
    spread = np.array([entry.std or 0.0 for entry in entries])
    panel.fill_between(x, mean - spread, mean + spread, color=series.color, alpha=0.18, lw=0)
    panel.plot(x, mean, label=label, **series._asdict())
    # A point without neighbours has no visible band, so draw its spread as a bar.
    missing = np.isnan(np.pad(mean, 1, constant_values=math.nan))
    for i in np.flatnonzero(~missing[1:-1] & missing[:-2] & missing[2:]):
        low, high = mean[i] - spread[i], mean[i] + spread[i]
        panel.vlines(x[i], low, high, color=series.color, alpha=0.5)


def _draw_published(
    panel: Axes, grid: Grid, entries: list[TableEntry], label: str, series: style.SeriesStyle
) -> bool:
    """Draw published values as hollow markers; return whether there are any."""
    published = {
        entry.latent_dim: found[1]
        for entry in entries
        if (found := published_value(grid, entry)) is not None
    }
    if published:
        # The underscore hides the label from the legend, where one entry stands for all models.
        panel.plot(
            list(published),
            list(published.values()),
            label=f"_{label}",
            **style.hollow_markers(series),
        )
    return bool(published)


def _format_seed_counts(entries: list[TableEntry]) -> str:
    """``3 seeds``, or ``1 to 3 of 3 seeds`` if some entries have fewer than the maximum."""
    counts = {entry.n for entry in entries}
    maximum = max(entry.seeds for entry in entries)
    planned = pluralize(maximum, "seed")
    return planned if counts == {maximum} else f"{_format_range(counts)} of {planned}"


def _format_range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(high) if low == high else f"{low} to {high}"


@mpl.rc_context(style.STYLE)
def training_curves(source: FigureSource) -> Figure:
    """Loss terms by epoch, with a panel for each term, a line per model and a band over its seeds.

    Terms are unweighted means over the steps of an epoch. Each diverged or failed run is a thin
    line up to the last epoch that it completed.

    Args:
        source: results of one dataset and latent dim.

    Raises:
        FigureError: if no run has a training history.
    """
    records = {
        model: [
            run.record
            for run in source.runs_of(CellNames(source.dataset, model, source.latent_dim))
            if run.record.history
        ]
        for model in source.models
    }
    found = {t for record in itertools.chain(*records.values()) for t in record.history}
    if not found:
        raise FigureError(
            f"no run on {source.dataset} at latent dimension {source.latent_dim} has a training "
            f"history; {source.retry_hint() or 'train with `hgmvae-bench run`'}"
        )
    terms = [*(term for term in TERM_LABELS if term in found), *sorted(found - TERM_LABELS.keys())]
    figure, panels = style.panels(len(terms), columns=4, height=1.45)
    for panel, term in zip(panels, terms, strict=True):
        for model, of_model in records.items():
            series = style.series_style(source.model_positions[model])
            _draw_term(panel, term, of_model, source.model_title(model), series)
        title, unit = TERM_LABELS.get(term, TermLabel(term, "no unit"))
        panel.set_title(title)
        panel.set_ylabel(unit)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    style.legend(figure, panels)
    counts = {len(of_model) for of_model in records.values() if of_model}
    seeds = f"{_format_range(counts)} {'seed' if counts == {1} else 'seeds'}"
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: loss terms, "
        f"mean ± standard deviation over {seeds}"
    )
    return figure


def _draw_term(
    panel: Axes, term: str, records: Sequence[Record], label: str, series: style.SeriesStyle
) -> None:
    complete = [
        pd.Series(record.history[term], dtype=float)
        for record in records
        if record.status == "complete" and term in record.history
    ]
    if complete:
        by_seed = pd.DataFrame(complete)  # An edited record may have fewer epochs than the others.
        mean, epochs = by_seed.mean().to_numpy(), np.arange(1, by_seed.shape[1] + 1)
        if len(complete) > 1:
            spread = by_seed.std().to_numpy()
            panel.fill_between(
                epochs, mean - spread, mean + spread, color=series.color, alpha=0.18, lw=0
            )
        panel.plot(epochs, mean, label=label, markevery=[-1], **series._asdict())
    for record in records:
        if record.status != "complete" and term in record.history:
            values = np.array(record.history[term])
            panel.plot(
                np.arange(1, len(values) + 1),
                values,
                label=f"{label} ({record.status})",
                color=series.color,
                lw=0.7,
                marker="x",
                markevery=[-1],
            )
