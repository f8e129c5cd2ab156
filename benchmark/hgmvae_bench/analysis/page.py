"""Generated parts of a Markdown page on a results folder.

Each part is between two comments. It can therefore be written again when records are added, and a
test can compare it with the records::

    <!-- begin: measured values, generated -->
    <!-- end: measured values -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from hgmvae_bench.analysis.measured_values import measured_values
from hgmvae_bench.analysis.summary import paper_summary
from hgmvae_bench.analysis.tables import build_table
from hgmvae_bench.grid import Grid
from hgmvae_bench.storage.schema import ControlRecord
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.errors import UserError


class PageError(UserError, ValueError):
    """A page without parts, or with a part that has no end or is unknown; the message names it."""


def update_page(
    page: str, grid: Grid, runs: Iterable[StoredRun], controls: Iterable[ControlRecord]
) -> str:
    """Regenerate the marked parts of a page, and leave the rest as it is.

    Args:
        page: Markdown with one or more of the parts in `PARTS`.
        grid: the grid that the page is about.
        runs: its recorded runs; those of other cells are ignored.
        controls: its recorded controls.

    Raises:
        PageError: if the page has no part, or one that is unknown or has no end.
    """
    runs, controls = list(runs), list(controls)
    names = re.findall(r"^<!-- begin: (.*), generated -->$", page, re.MULTILINE)
    if not names:
        first = _begin(next(iter(PARTS)))
        raise PageError(f"the page has no generated part, which begins with the line {first!r}")
    for name in names:
        if name not in PARTS:
            known = ", ".join(map(repr, PARTS))
            raise PageError(f"the page has an unknown part {name!r}; known parts: {known}")
        page = _replace(page, name, PARTS[name](grid, runs, controls))
    return page


def _summary(grid: Grid, runs: Sequence[StoredRun], _: Sequence[ControlRecord]) -> str:
    return paper_summary(grid, [build_table(grid, spec, runs) for spec in grid.spec.tables])


Part = Callable[[Grid, Sequence[StoredRun], Sequence[ControlRecord]], str]
"""Writer of a part from a grid and its recorded runs and controls."""

PARTS: Mapping[str, Part] = {
    "summary of the records": _summary,
    "measured values": measured_values,
}
"""Writers of the parts by name."""


def _begin(name: str) -> str:
    return f"<!-- begin: {name}, generated -->"


def _end(name: str) -> str:
    return f"<!-- end: {name} -->"


def _replace(page: str, name: str, text: str) -> str:
    begin, end = _begin(name), _end(name)
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found or begin in rest or end in before + after:
        raise PageError(f"the page needs one line {begin!r} and, below it, one line {end!r}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
