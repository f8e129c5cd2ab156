"""Layout of tables as text of limited width."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LINE_LENGTH = 100
"""Characters per line of prose, and of tables that are broken into lines."""


def fit_to_width(
    frame: pd.DataFrame, width: int | None, *, long: bool, shares: tuple[float, ...]
) -> str:
    """Lay out a frame as text of at most ``width`` characters per line, if one is given.

    Args:
        frame: text of the entries.
        width: characters per line.
        long: whether to break lines of a frame that is too wide, instead of splitting its columns.
        shares: column widths as shares of a line, for entries that are always broken into lines;
            empty for other entries.
    """
    if shares:
        return _break_lines(frame, width or LINE_LENGTH, shares)
    text = frame.to_string()
    if width is None or _line_length(text) <= width:
        return text
    if long:
        return "\n\n".join(_row_groups(frame, width))
    return "\n\n".join(part.to_string() for part in _column_parts(frame, width))


def _column_parts(frame: pd.DataFrame, width: int) -> Iterator[pd.DataFrame]:
    """Parts of a frame with as many columns as fit into ``width``, at least one each."""
    start = 0
    while start < frame.shape[1]:
        end = start + 1
        while end < frame.shape[1]:
            if _line_length(frame.iloc[:, start : end + 1].to_string()) > width:
                break
            end += 1
        yield frame.iloc[:, start:end]
        start = end


def _row_groups(frame: pd.DataFrame, width: int) -> Iterator[str]:
    """Groups of rows under a line with their outer names, which saves the columns of these."""
    if frame.index.nlevels <= 2:
        yield _break_lines(frame, width)
        return
    outer = [", ".join(names[:-2]) for names in frame.index]
    inner = frame.droplevel(list(frame.index.names[:-2]))
    for heading in dict.fromkeys(outer):
        rows = inner[[name == heading for name in outer]]
        yield f"{heading}\n{_break_lines(rows, width)}"


def _line_length(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _break_lines(frame: pd.DataFrame, width: int, shares: tuple[float, ...] = ()) -> str:
    """Lay out a frame with entries broken into lines, in columns of the given shares."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    flat = index_as_columns(frame)
    gap = 1 if shares else 0
    table = Table(box=None, expand=bool(shares), pad_edge=False, padding=(0, 1, gap, 0))
    words = [max(map(cell_len, " ".join([name, *flat[name]]).split())) for name in flat.columns]
    words_fit = sum(words) + len(words) <= width
    for name, word, share in zip(flat.columns, words, shares or [0.0] * len(words), strict=True):
        min_width = word if words_fit else None
        table.add_column(name, ratio=round(100 * share) or None, min_width=min_width)
    for line in flat.to_numpy():
        table.add_row(*map(Text, line))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def index_as_columns(frame: pd.DataFrame, *, grouped: bool = False) -> pd.DataFrame:
    """Turn the names of the rows into columns, with repeated names left blank.

    Args:
        frame: table with one or more names per row.
        grouped: repeat all names where any but the last changes, so that groups of rows can be on
            different pages.
    """
    names = frame.index.to_frame(index=False)
    depth = names.shape[1]
    repeated = [
        names.iloc[:, : max(level + 1, depth - 1) if grouped else level + 1].duplicated()
        for level in range(depth)
    ]
    names = names.mask(pd.concat(repeated, axis=1).to_numpy(), "")
    return pd.concat([names, frame.reset_index(drop=True)], axis=1)
