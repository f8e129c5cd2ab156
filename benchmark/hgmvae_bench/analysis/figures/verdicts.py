"""Heatmap of the paper's values, coloured by the verdict of the measured seeds."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hgmvae_bench.analysis.comparison import (
    VERDICT_SYMBOLS,
    ComparedValue,
    ValueVerdict,
    compare_with_paper,
)
from hgmvae_bench.analysis.figures import style
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource
from hgmvae_bench.analysis.published import values_by_cell
from hgmvae_bench.analysis.tables import build_table, metric_titles
from hgmvae_bench.grid import Grid, TableSpec, load_grid


class VerdictStyle(NamedTuple):
    """Colours and description of a verdict."""

    color: str
    text_color: str
    description: str


VERDICT_STYLES: Mapping[ValueVerdict, VerdictStyle] = {
    "better": VerdictStyle("#0A5FC2", "white", "better"),
    "reproduced": VerdictStyle("#007A58", "white", "reproduced"),
    "not distinguishable": VerdictStyle("#7FCDAE", "#1B1B1F", "not distinguishable"),
    "undecided": VerdictStyle("#F6E3A1", "#222222", "undecided"),
    "worse": VerdictStyle("#C44E00", "white", "worse"),
    "missing": VerdictStyle("#ECEDF1", "#8A8C96", "not measured"),
}
"""Styles by verdict, in the order of the legend.

Text has a contrast of at least 4.5 to 1. Under simulated protanopia, deuteranopia and tritanopia
(Machado et al. 2009) the colours differ by at least 10 (CIEDE2000).
"""

CELL_WIDTH = 0.286
CELL_HEIGHT = 0.18
GROUP_GAP = 0.06
LABEL_WIDTH = 1.2
INDENT = 0.12
MARGIN = 0.03
"""Sizes in inches."""

Label = tuple[str, str]
HeatmapKey = tuple[str, str, str, str, int]
"""Table, dataset, metric, model and latent dim of a published value."""


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper as a grid of values.

    Attributes:
        title: title of the table.
        rows, columns: group and label of each row and column; the group may be empty.
        values: key of the published value by row and column.
    """

    title: str
    rows: list[Label]
    columns: list[Label]
    values: dict[tuple[Label, Label], HeatmapKey]


@mpl.rc_context(style.STYLE)
def verdict_heatmap(source: FigureSource) -> Figure:
    """Heatmap of every value in the paper's Tables 1 to 5, with a label that counts the verdicts.

    Colour and symbol show the verdict of `hgmvae_bench.analysis.comparison`, and the number counts
    the measured seeds. Values of cells without runs appear as not measured.

    Args:
        source: results of a whole grid.

    Raises:
        FigureError: if the grid is filtered or has no published cell.
    """
    heatmap = Heatmap(_compare(source))
    tables = published_tables(load_grid("paper"))
    right = style.WIDTH - MARGIN
    end_of_1 = heatmap.draw(tables["1"], LABEL_WIDTH, 0.85)
    end_of_4 = heatmap.draw(tables["4"], right - 7 * CELL_WIDTH, 0.85)
    # Tables 3 and 5 share their columns, Tables 3 and 2 their rows.
    middle = end_of_4 + 1
    end_of_3 = heatmap.draw(tables["3"], LABEL_WIDTH, middle, rotate=True)
    heatmap.draw(tables["2"], right - 2 * CELL_WIDTH, middle, rotate=True, row_labels=False)
    end_of_5 = heatmap.draw(tables["5"], LABEL_WIDTH, end_of_3 + 0.3, column_labels=False)
    heatmap.draw_legend(INDENT, end_of_1 + 0.25)
    heatmap.finish(end_of_5 + 0.06)
    return heatmap.figure


def published_tables(paper: Grid) -> dict[str, PublishedTable]:
    """The paper's tables by name.

    Tables of several latent dims have rows for metrics and models and columns for latent dims; the
    others have rows for models and columns for datasets and metrics.
    """
    return {spec.name: _published_table(paper, spec) for spec in paper.spec.tables}


def _published_table(paper: Grid, spec: TableSpec) -> PublishedTable:
    titles = metric_titles(spec.metrics, " ")
    title = f"Table {spec.name}. {spec.title}"
    if len(spec.metrics) == 1:
        title = f"Table {spec.name}. {titles[spec.metrics[0]]}"
    values = {}
    for dataset, metric, model, latent_dim in itertools.product(
        spec.datasets, spec.metrics, spec.models, spec.latent_dims
    ):
        row, column = ("", paper.model_title(model)), (paper.dataset_title(dataset), titles[metric])
        if len(spec.latent_dims) > 1:
            row, column = (titles[metric], paper.model_title(model)), ("", str(latent_dim))
        elif len(spec.metrics) == 1:
            column = "", paper.dataset_title(dataset)
        values[row, column] = spec.name, dataset, metric, model, latent_dim
    return PublishedTable(
        title,
        rows=list(dict.fromkeys(row for row, _ in values)),
        columns=list(dict.fromkeys(column for _, column in values)),
        values=values,
    )


def _compare(source: FigureSource) -> dict[HeatmapKey, ComparedValue]:
    """Comparison of each published value that has one.

    The first one applies if a grid has variants of a model. A value that the paper repeats in a
    table that the grid does not have gets the comparison of the other table.
    """
    if source.grid.spec != source.grid.full_spec:
        raise FigureError("this figure shows the whole grid; omit the filters")
    runs = source.runs.values()
    tables = [build_table(source.grid, spec, runs) for spec in source.grid.spec.tables]
    own: dict[HeatmapKey, ComparedValue] = {}
    repeated: dict[HeatmapKey, ComparedValue] = {}
    for each in compare_with_paper(source.grid, tables):
        cell = source.grid.cell(each.dataset, each.model, each.latent_dim)
        key = cell.dataset, each.metric, cell.model, cell.latent_dim
        own.setdefault((each.paper_table, *key), each)
        for table, (published, _) in values_by_cell()[key].items():
            if published == each.published:
                repeated.setdefault((table, *key), each)
    if not own:
        raise FigureError(f"the paper has no value of any cell of the grid {source.grid.spec.name}")
    return repeated | own


class Heatmap:
    """Figure with tables at positions in inches from the upper left corner.

    Attributes:
        figure: figure, complete after `finish`.
        tally: number of drawn values by verdict.
    """

    def __init__(self, compared: Mapping[HeatmapKey, ComparedValue]) -> None:
        self.figure = Figure()
        self.tally: Counter[ValueVerdict] = Counter()
        self._n_other_settings = 0
        self._compared = compared
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()

    def draw(
        self,
        table: PublishedTable,
        left: float,
        top: float,
        *,
        rotate: bool = False,
        row_labels: bool = True,
        column_labels: bool = True,
    ) -> float:
        """Draw a table whose first cell is at (``left``, ``top``).

        Args:
            table: table to draw.
            left: left edge of the cells.
            top: upper edge of the cells.
            rotate: rotate the column labels.
            row_labels: draw labels and groups of the rows.
            column_labels: draw labels and groups of the columns.

        Returns:
            Lower edge of the cells.
        """
        xs = _offsets(table.columns, left, CELL_WIDTH)
        ys = _offsets(table.rows, top, CELL_HEIGHT)
        for (row, column), value in table.values.items():
            self._draw_value(value, xs[column], ys[row])
        if row_labels:
            self._label_rows(ys, left)
        if column_labels:
            self._label_columns(xs, top, rotate=rotate)
        title_y = top - ((0.77 if rotate else 0.22) if column_labels else 0.06)
        if row_labels:
            self._text(left - LABEL_WIDTH + INDENT, title_y, table.title, weight="bold", size=8)
        else:
            end = max(xs.values()) + CELL_WIDTH
            self._text(end, title_y, table.title, weight="bold", size=8, ha="right")
        return max(ys.values()) + CELL_HEIGHT

    def draw_legend(self, left: float, top: float) -> None:
        """Draw an entry for each verdict, in two columns, with the number of its values."""
        n_rows = -(-len(VERDICT_STYLES) // 2)
        for i, (verdict, look) in enumerate(VERDICT_STYLES.items()):
            column, row = divmod(i, n_rows)
            x, y = left + 1.55 * column, top + 1.3 * row * CELL_HEIGHT
            self._draw_cell(x, y, look, VERDICT_SYMBOLS[verdict])
            text = f"{look.description}: {self.tally[verdict]}"
            self._text(x + CELL_WIDTH + 0.06, y + CELL_HEIGHT / 2, text, va="center_baseline")

    def finish(self, height: float) -> None:
        """Set the title and the size of the figure; ``height`` is in inches."""
        self.figure.set_size_inches(style.WIDTH, height)
        self._axes.set(xlim=(0, style.WIDTH), ylim=(height, 0))
        measured = self.tally.total() - self.tally["missing"]
        title = f"{measured} of the paper's {self.tally.total()} values measured"
        if self._n_other_settings:
            title += f", {self._n_other_settings} of them with other settings"
        counts = ", ".join(
            f"{n} {VERDICT_STYLES[verdict].description}" for verdict, n in self.tally.items()
        )
        self.figure.set_label(f"{title}: {counts}")
        self.figure.suptitle(title, x=INDENT / style.WIDTH, y=1 - 0.08 / height, ha="left")
        explanation = "colour and symbol show the verdict, numbers count seeds."
        self._text(INDENT, 0.42, f"Measured against published: {explanation}")

    def _draw_value(self, key: HeatmapKey, x: float, y: float) -> None:
        compared = self._compared.get(key)
        verdict: ValueVerdict = "missing" if compared is None else compared.verdict
        self.tally[verdict] += 1
        text = VERDICT_SYMBOLS[verdict]
        if compared is not None and compared.n:
            text += f" {compared.n}"
            self._n_other_settings += bool(compared.settings_note)
        self._draw_cell(x, y, VERDICT_STYLES[verdict], text)

    def _draw_cell(self, x: float, y: float, look: VerdictStyle, text: str) -> None:
        cell = Rectangle((x, y), CELL_WIDTH, CELL_HEIGHT, fc=look.color, ec="white", lw=1)
        self._axes.add_patch(cell)
        center = x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2
        self._text(*center, text, color=look.text_color, ha="center", va="center_baseline")

    def _label_rows(self, ys: Mapping[Label, float], left: float) -> None:
        for (_, label), y in ys.items():
            self._text(left - 0.05, y + CELL_HEIGHT / 2, label, ha="right", va="center_baseline")
        for group, (first, last) in _group_ends(ys).items():
            y = (first + last + CELL_HEIGHT) / 2
            x = left - 0.25 - 0.053 * max(len(label) for _, label in ys)
            self._text(x, y, group, rotation=90, ha="center", va="center", weight="bold")

    def _label_columns(self, xs: Mapping[Label, float], top: float, *, rotate: bool) -> None:
        for (_, label), x in xs.items():
            center = x + CELL_WIDTH / 2
            rotation = 90 if rotate else 0
            self._text(center, top - 0.04, label, rotation=rotation, ha="center", va="bottom")
        if not rotate:
            self._text(min(xs.values()) - 0.05, top - 0.04, "L =", ha="right")
        for group, (first, last) in _group_ends(xs).items():
            center = (first + last + CELL_WIDTH) / 2
            self._text(center, top - 0.59, group, ha="center", va="bottom", weight="bold")

    def _text(self, x: float, y: float, text: str, **options: Any) -> None:
        self._axes.text(x, y, text, **{"size": 7, "va": "bottom", **options})


def _offsets(labels: Sequence[Label], start: float, size: float) -> dict[Label, float]:
    """Position of each row or column, with a gap between groups."""
    offsets = {}
    for i, label in enumerate(labels):
        if i and label[0] != labels[i - 1][0]:
            start += GROUP_GAP
        offsets[label] = start
        start += size
    return offsets


def _group_ends(offsets: Mapping[Label, float]) -> dict[str, tuple[float, float]]:
    """Position of the first and the last row or column of each named group."""
    positions: dict[str, list[float]] = defaultdict(list)
    for (group, _), offset in offsets.items():
        if group:
            positions[group].append(offset)
    return {group: (values[0], values[-1]) for group, values in positions.items()}
