"""Style of the figures: print sizes, colour-blind safe colours and reproducible files."""

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
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator

from hgmvae_bench.utils.atomic_files import write_output
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import escape_controls

STYLE: Any = {
    # Figures are 17 cm wide and printed unscaled; no text is smaller than 7 points.
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "font.family": "DejaVu Sans",  # part of matplotlib, so it is the same on every machine
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
    # A dollar sign in a name must not start a formula.
    "text.parse_math": False,
    # A fixed salt makes the identifiers in SVG files reproducible.
    "svg.hashsalt": "hgmvae-bench",
    "svg.fonttype": "path",
}
"""matplotlib settings of every figure; ``matplotlib.rc_context(STYLE)`` applies them."""

WIDTH = 6.7
"""Width of a figure in inches: the text width of an A4 page."""

HEADROOM = 0.6
"""Height of a figure's title and legend in inches."""

LEGEND_CHARACTERS = 90
"""Number of characters that fit side by side within `WIDTH`."""


class RenderError(UserError, ValueError):
    """A figure whose values cannot be drawn."""


class SeriesStyle(NamedTuple):
    """Colour, line style and marker of a series."""

    color: str
    linestyle: str
    marker: str


# Okabe & Ito 2008 without yellow, which is hard to see on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")

NEUTRAL = SeriesStyle("0.3", "-", "o")
"""Style of a legend entry that stands for all series."""

# Paul Tol's "muted" scheme: ten hues that readers with common colour blindness can distinguish.
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
    """Style of series ``index``, from cycles of 7 colours, 4 line styles and 11 markers."""
    return SeriesStyle(
        _COLORS[index % len(_COLORS)],
        _LINESTYLES[index % len(_LINESTYLES)],
        _MARKERS[index % len(_MARKERS)],
    )


def hollow_markers(series: SeriesStyle) -> dict[str, Any]:
    """Plot arguments for hollow markers, larger than those of the series itself."""
    return {
        "color": series.color,
        "linestyle": "none",
        "marker": series.marker,
        "markerfacecolor": "none",
        "markersize": 7,
        "markeredgewidth": 1.1,
        "zorder": 3,
    }


def new_figure(width: float, height: float) -> Figure:
    """Create a figure without a window; ``width`` and ``height`` are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def log2_x_axis(axes: Axes, values: Sequence[int]) -> None:
    """Make the x axis logarithmic to base 2, with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")


def show_reason(axes: Axes, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, fill(text, 24), ha="center", va="center", color="0.3", transform=axes.transAxes
    )


def panels(
    n: int, *, columns: int, height: float, headroom: float = HEADROOM
) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``n`` panels in rows of at most ``columns``.

    Args:
        n: number of panels.
        columns: maximum number of panels in a row.
        height: height of a panel in inches.
        headroom: height of the figure's title and legend in inches.
    """
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = new_figure(WIDTH, height * rows + headroom)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[n:]:
        unused.remove()
    return figure, axes[:n]


def legend_columns(labels: Sequence[str], limit: int) -> int:
    """Number of legend columns, at most ``limit``, that fit below a figure."""
    return max(1, min(limit, len(labels), LEGEND_CHARACTERS // (max(map(len, labels)) + 6)))


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add a legend for all panels below them; each label appears once."""
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=legend_columns(list(handles), 4),
        handlelength=3,
    )


def to_svg(figure: Figure) -> bytes:
    """Write a figure as SVG; the same figure gives the same bytes."""
    # matplotlib adds the date by default.
    return _render(figure, format="svg", metadata={"Date": None})


def to_png(figure: Figure, dpi: float = 200) -> bytes:
    """Write a figure as PNG at ``dpi`` dots per inch; the same figure gives the same bytes."""
    return _render(figure, format="png", dpi=dpi, metadata={"Software": None})


FORMATS = {".svg": to_svg, ".png": to_png}
"""Writer of each file format, by suffix."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the suffix of ``path`` names.

    Args:
        figure: the figure.
        path: the file, with a suffix of `FORMATS`.

    Raises:
        hgmvae_bench.utils.atomic_files.OutputError: if the file cannot be written.
    """
    write_output(path, FORMATS[path.suffix.lower()](figure))


def _render(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        try:
            for text in figure.findobj(Text):
                shown = escape_controls(text.get_text(), keep="\n")
                if shown != text.get_text():  # setting an equal text would lay out the figure again
                    text.set_text(shown)
            figure.savefig(file, **options)
        except (ValueError, OverflowError) as error:  # for example of losses of 1e308
            raise RenderError(f"the figure cannot be drawn from these values: {error}") from error
    return file.getvalue()
