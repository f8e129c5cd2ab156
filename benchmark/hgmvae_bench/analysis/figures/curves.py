"""Curves over latent dimensions and over epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hgmvae_bench.analysis.comparison import published_value
from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import CellNames, FigureError, FigureSource
from hgmvae_bench.analysis.tables import ARROWS, TableEntry, build_table
from hgmvae_bench.grid import Grid, TableSpec
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import Record


class TermLabel(NamedTuple):
    """How a loss term is written."""

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
"""The suite's own loss terms; others are written as the model names them."""


@mpl.rc_context(style.STYLE)
def metrics_by_latent_dim(
    source: FigureSource, metrics: Sequence[str] = ("sc", "ch", "db")
) -> Figure:
    """Fig. 3: a panel for each metric, a line for each model, a band of ± one standard deviation.

    The values are those of the tables: means over the seeds that have one. A latent dimension at
    which no seed has one leaves a gap, and a metric that no run has no panel. What the paper
    printed for the same dataset, model and latent dimension stands beside them as hollow markers,
    of the models that have a line.

    Args:
        source: of one dataset.
        metrics: registered names.

    Raises:
        FigureError: if no run of the dataset has any of the metrics.
        hgmvae_bench.analysis.tables.TableError: if values of a metric cannot be compared.
    """
    models = source.models
    latent_dims = sorted({names.latent_dim for names in source.cells})
    spec = TableSpec(
        name="figure",
        title="figure",
        datasets=[source.dataset],
        models=models,
        latent_dims=latent_dims,
        metrics=list(metrics),
        rows=["metric", "model"],
        columns=["latent_dim"],
    )
    entries = [
        entry
        for entry in build_table(source.grid, spec, source.runs.values()).entries
        if CellNames(entry.dataset, entry.model, entry.latent_dim) in source.cells
    ]
    drawn = [entry for entry in entries if entry.n]
    if not drawn:
        evaluate = f"compute them with `hgmvae-bench evaluate --metrics {','.join(metrics)}`"
        raise FigureError(
            f"no run on {source.dataset} has a value of {', '.join(metrics)}; "
            f"{source.retry_hint() or evaluate}"
        )
    shown = [metric for metric in metrics if any(entry.metric == metric for entry in drawn)]
    figure, panels = style.panels(len(shown), columns=3, height=2.2)
    any_published = False
    for panel, metric in zip(panels, shown, strict=True):
        for model in models:
            of_model = [e for e in entries if (e.metric, e.model) == (metric, model)]
            if any(entry.n for entry in of_model):
                title, look = (
                    source.model_title(model),
                    style.series_style(source.model_positions[model]),
                )
                _line_with_band(panel, of_model, title, look)
                any_published |= _hollow_markers(panel, source.grid, of_model, title, look)
        plugin = METRICS[metric]
        panel.set_title(f"{plugin.title} {ARROWS[plugin.direction]}")
        panel.set_ylabel(f"{plugin.title} ({plugin.direction} is better)")
        panel.set_xlabel("latent dimension L")
        style.log2_x_axis(panel, latent_dims)
    if any_published:
        panels[-1].plot([], [], label="hollow: as published", **style.hollow(style.NEUTRAL))
    style.legend(figure, panels)
    figure.suptitle(f"{source.dataset_title()}: mean ± standard deviation over {_seeds(drawn)}")
    return figure


def _line_with_band(
    panel: Axes, entries: list[TableEntry], label: str, look: style.SeriesStyle
) -> None:
    x = [entry.latent_dim for entry in entries]
    mean = np.array([math.nan if entry.mean is None else entry.mean for entry in entries])
    spread = np.array([entry.std or 0.0 for entry in entries])
    panel.fill_between(x, mean - spread, mean + spread, color=look.color, alpha=0.18, lw=0)
    panel.plot(x, mean, label=label, **look._asdict())
    # Where neither neighbour has a value, a band has no width.
    lacking = np.isnan(np.pad(mean, 1, constant_values=math.nan))
    for place in np.flatnonzero(~lacking[1:-1] & lacking[:-2] & lacking[2:]):
        low, high = mean[place] - spread[place], mean[place] + spread[place]
        panel.vlines(x[place], low, high, color=look.color, alpha=0.5)


def _hollow_markers(
    panel: Axes, grid: Grid, entries: list[TableEntry], label: str, look: style.SeriesStyle
) -> bool:
    """Published values beside the measured; whether there are any."""
    published = {
        entry.latent_dim: found[1]
        for entry in entries
        if (found := published_value(grid, entry)) is not None
    }
    if published:
        # Kept out of the legend by the underscore: one entry there stands for all models.
        panel.plot(
            list(published), list(published.values()), label=f"_{label}", **style.hollow(look)
        )
    return bool(published)


def _seeds(entries: list[TableEntry]) -> str:
    """``3 seeds``; ``1 to 3 of 3 seeds`` where some have fewer than there could be."""
    counts = {entry.n for entry in entries}
    most = max(entry.seeds for entry in entries)
    if counts == {most}:
        return "1 seed" if most == 1 else f"{most} seeds"
    return f"{_range(counts)} of {most} seeds"


def _range(counts: set[int]) -> str:
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


@mpl.rc_context(style.STYLE)
def training_curves(source: FigureSource) -> Figure:
    """A panel for each loss term, a line for each model that has it, a band over its seeds.

    The terms are as the models report them, unweighted: means over the steps of an epoch.
    Diverged and failed runs are drawn as far as they got, as thin lines of their own.

    Args:
        source: of one dataset and latent dimension.

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
            look = style.series_style(source.model_positions[model])
            _term(panel, term, of_model, source.model_title(model), look)
        title, unit = TERM_LABELS.get(term, TermLabel(term, "no unit"))
        panel.set_title(title)
        panel.set_ylabel(unit)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    style.legend(figure, panels)
    counts = {len(of_model) for of_model in records.values() if of_model}
    figure.suptitle(
        f"{source.dataset_title()}, L = {source.latent_dim}: loss terms, "
        f"mean ± standard deviation over {_range(counts)} {'seed' if counts == {1} else 'seeds'}"
    )
    return figure


def _term(
    panel: Axes, term: str, records: Sequence[Record], label: str, look: style.SeriesStyle
) -> None:
    whole = [r.history[term] for r in records if r.status == "complete" and term in r.history]
    if whole:
        values = np.array(whole)
        mean, epochs = values.mean(axis=0), np.arange(1, values.shape[1] + 1)
        if len(whole) > 1:
            spread = values.std(axis=0, ddof=1)
            panel.fill_between(
                epochs, mean - spread, mean + spread, color=look.color, alpha=0.18, lw=0
            )
        panel.plot(epochs, mean, label=label, markevery=[-1], **look._asdict())
    for record in records:
        if record.status != "complete" and term in record.history:
            values = np.array(record.history[term])
            panel.plot(
                np.arange(1, len(values) + 1),
                values,
                label=f"{label} ({record.status})",
                color=look.color,
                lw=0.7,
                marker="x",
                markevery=[-1],
            )
