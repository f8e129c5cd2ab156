"""How figures look: sizes for print, colours that colour-blind readers tell apart, stable files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from hgmvae_bench.utils.atomic_files import write_output
from hgmvae_bench.utils.errors import UserError

STYLE: Any = {
    # A figure of the text's width (17 cm) is printed as it is: no letter below 7 points.
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    # Names are text: a dollar sign in one does not start a formula.
    "text.parse_math": False,
    # Identifiers in SVG are drawn from this salt instead of at random.
    "svg.hashsalt": "hgmvae-bench",
    "svg.fonttype": "path",
}
"""matplotlib settings of every figure; ``matplotlib.rc_context(STYLE)`` applies them."""

WIDTH = 6.7
"""Inches: the width of a page's text."""

HEADROOM = 0.6
"""Inches that a figure's title and legend take."""

LEGEND_LETTERS = 90
"""Letters that fit beside each other in the text's width."""


class SeriesStyle(NamedTuple):
    """What tells one series from another, with and without colour."""

    color: str
    linestyle: str
    marker: str


# Okabe & Ito 2008 without the yellow, which white paper swallows.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")

NEUTRAL = SeriesStyle("0.3", "-", "o")
"""The look of what stands for every series."""

# Tol's "muted" scheme: ten hues that stay apart for the common kinds of colour blindness.
CLASS_COLORS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#999999",
)
CLASS_MARKERS = ("o", "^", "s", "D")


def series_style(index: int) -> SeriesStyle:
    """The look of series ``index``; 7 colours, 4 line styles and 11 markers before any recurs."""
    return SeriesStyle(
        _COLORS[index % len(_COLORS)],
        _LINESTYLES[index % len(_LINESTYLES)],
        _MARKERS[index % len(_MARKERS)],
    )


def hollow(look: SeriesStyle) -> dict[str, Any]:
    """Markers without a line, large enough to stand around those of the series itself."""
    return {
        "color": look.color,
        "linestyle": "none",
        "marker": look.marker,
        "markerfacecolor": "none",
        "markersize": 7,
        "markeredgewidth": 1.1,
        "zorder": 3,
    }


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def log2_x_axis(axes: Axes, values: Sequence[int]) -> None:
    """Make the x axis logarithmic, with the values that were measured as its ticks."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")


def note(axes: Axes, text: str) -> None:
    """Say in an empty panel why there is nothing to see."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, fill(text, 24), ha="center", va="center", color="0.3", transform=axes.transAxes
    )


def panels(
    n: int, *, columns: int, height: float, headroom: float = HEADROOM
) -> tuple[Figure, list[Axes]]:
    """A figure of the text's width with ``n`` panels in rows of at most ``columns``.

    Args:
        n: number of panels.
        columns: of a row.
        height: of a panel in inches.
        headroom: inches for the figure's title and legend.
    """
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = new_figure(WIDTH, height * rows + headroom)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[n:]:
        unused.remove()
    return figure, axes[:n]


def fitting_columns(labels: Sequence[str], most: int) -> int:
    """So many labels beside each other fit below a figure of the text's width."""
    return max(1, min(most, len(labels), LEGEND_LETTERS // (max(map(len, labels)) + 6)))


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels below them, each label once."""
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=fitting_columns(list(handles), 4),
        handlelength=3,
    )


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    # A date, as matplotlib adds by default, would make every file a new one.
    return _written(figure, format="svg", metadata={"Date": None})


def to_png(figure: Figure, dpi: float = 200) -> bytes:
    """The figure as PNG at ``dpi`` dots per inch; the same figure gives the same bytes."""
    return _written(figure, format="png", dpi=dpi, metadata={"Software": None})


FORMATS = {".svg": to_svg, ".png": to_png}
"""How a figure is written, by a file's suffix."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the format that the file's suffix names.

    Raises:
        UserError: if the suffix is neither ``.svg`` nor ``.png``.
        hgmvae_bench.utils.atomic_files.OutputError: if the file cannot be written.
    """
    write = FORMATS.get(path.suffix.lower())
    if write is None:
        raise UserError(f"{path}: figures are written as {' or '.join(FORMATS)}")
    write_output(path, write(figure))


def _written(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, **options)
    return file.getvalue()
