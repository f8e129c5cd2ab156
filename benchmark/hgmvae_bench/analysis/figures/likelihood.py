"""Models in the plane of rate and distortion (Alemi et al. 2018, Fixing a broken ELBO)."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import CellNames, FigureError, FigureSource
from hgmvae_bench.analysis.table_entries import incomparable

MARGIN_SHARE = 0.12
"""Margin around the points, as a share of their range."""

Points = npt.NDArray[np.float64]


@mpl.rc_context(style.STYLE)
def rate_distortion(source: FigureSource) -> Figure:
    """Draw the models of a dataset by rate and distortion, with a panel for each latent dim.

    A large marker is the mean over seeds, and a small one is one seed. An ellipse is one standard
    deviation of the seeds along its principal axes and needs three seeds. Along each dotted line
    the negative ELBO (rate + distortion) is constant. The title names models without both values.

    Args:
        source: results of one dataset.

    Raises:
        FigureError: if no run of the dataset has both metrics, or values cannot be compared.
    """
    _check_comparable(source)
    latent_dims = sorted({names.latent_dim for names in source.cells})
    points = {
        latent_dim: {
            model: found
            for model in source.models
            if len(found := _points(source, CellNames(source.dataset, model, latent_dim)))
        }
        for latent_dim in latent_dims
    }
    shown = {latent_dim: of_dim for latent_dim, of_dim in points.items() if of_dim}
    if not shown:
        evaluate = "compute them with `hgmvae-bench evaluate --metrics rate,distortion`"
        raise FigureError(
            f"no run on {source.dataset} has values of rate and distortion; "
            f"{source.retry_hint() or evaluate}"
        )
    figure, panels = style.panels(
        len(shown), columns=2, height=3.4 if len(shown) == 1 else 2.9, headroom=1.0
    )
    for panel, (latent_dim, of_dim) in zip(panels, shown.items(), strict=True):
        for model, values in of_dim.items():
            series = style.series_style(source.model_positions[model])
            _draw_model(panel, values, source.model_title(model), series)
        _draw_elbo_lines(panel, np.concatenate([_extent(values) for values in of_dim.values()]))
        panel.set_title(f"L = {latent_dim}")
        panel.set_xlabel("rate (nats per image)")
        panel.set_ylabel("distortion (nats per image)")
    style.legend(figure, panels)
    figure.suptitle(_title(source, shown))
    return figure


def _check_comparable(source: FigureSource) -> None:
    """Refuse values that were computed differently or on different data."""
    runs = [run for names in source.cells for run in source.runs_of(names)]
    for metric in ("rate", "distortion"):
        if reason := incomparable(runs, metric):
            raise FigureError(f"{metric} on {source.dataset}: {reason}")


def _points(source: FigureSource, names: CellNames) -> Points:
    """Rate and distortion, (n_seeds, 2), of a cell's runs that have both."""
    pairs = []
    for run in source.runs_of(names):
        rate, distortion = (run.metrics.get(metric) for metric in ("rate", "distortion"))
        if rate is not None and distortion is not None:
            pairs.append((rate.value, distortion.value))
    complete = [pair for pair in pairs if None not in pair]
    return np.array(complete, dtype=np.float64).reshape(-1, 2)


def _draw_model(panel: Axes, points: Points, label: str, series: style.SeriesStyle) -> None:
    if len(points) > 1:
        panel.plot(*points.T, series.marker, color=series.color, markersize=2.5, alpha=0.6)
    if len(points) > 2:
        width, height, angle = ellipse_axes(points)
        center = points.mean(axis=0)
        panel.add_patch(
            Ellipse(
                (float(center[0]), float(center[1])),
                width,
                height,
                angle=angle,
                facecolor=series.color,
                edgecolor=series.color,
                alpha=0.2,
            )
        )
    panel.plot(
        *points.mean(axis=0), label=label, color=series.color, marker=series.marker, linestyle=""
    )


def ellipse_axes(points: Points) -> tuple[float, float, float]:
    """Axes of the ellipse of one standard deviation of points (n, 2), with n at least 2.

    Returns:
        Full length of the major and of the minor axis, and the angle in degrees from the x axis to
        the major axis.
    """
    variances, directions = np.linalg.eigh(np.cov(points, rowvar=False))
    minor, major = 2 * np.sqrt(variances.clip(min=0))
    angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
    return float(major), float(minor), angle


def _extent(points: Points) -> Points:
    """Points (n, 2) and, for an ellipse, opposite corners of its bounding box, (n + 2, 2)."""
    if len(points) < 3:
        return points
    mean, deviation = points.mean(axis=0), points.std(axis=0, ddof=1)
    return np.vstack([points, mean - deviation, mean + deviation])


def _draw_elbo_lines(panel: Axes, points: Points) -> None:
    """Set the panel's limits around points (n, 2), and draw lines of constant negative ELBO."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN_SHARE * np.maximum(high - low, 1e-3 * np.abs(high) + 1e-6)
    low, high = low - margin, high + margin
    panel.set_xlim(low[0], high[0])
    panel.set_ylim(low[1], high[1])
    for bound in MaxNLocator(nbins=6).tick_values(low.sum(), high.sum()):
        rates = np.array([max(low[0], bound - high[1]), min(high[0], bound - low[1])])
        if rates[0] >= rates[1]:
            continue
        panel.plot(rates, bound - rates, ":", color="0.6", lw=0.8, zorder=1)
        starts_at_top = bound - high[1] > low[0]
        panel.annotate(
            f"{bound:g}",
            (rates[0], bound - rates[0]),
            xytext=(2, -2 if starts_at_top else 1),
            textcoords="offset points",
            va="top" if starts_at_top else "bottom",
            fontsize=7,
            color="0.45",
        )


def _title(source: FigureSource, shown: dict[int, dict[str, Points]]) -> str:
    counts = {len(points) for of_dim in shown.values() for points in of_dim.values()}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    lines = [
        f"{source.dataset_title()}: mean and one standard deviation over {seeds} "
        f"{'seed' if counts == {1} else 'seeds'}; dotted: negative ELBO",
    ]
    drawn = {model for of_dim in shown.values() for model in of_dim}
    if missing := [source.model_title(model) for model in source.models if model not in drawn]:
        lines.append(f"without a likelihood: {', '.join(missing)}")
    return "\n".join(lines)
