"""Figure files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgmvae_bench.analysis.figures.catalogue import FigureKind
from hgmvae_bench.analysis.figures.source import FigureError, FigureSource, ScopeAxis
from hgmvae_bench.analysis.figures.style import FORMATS, save
from hgmvae_bench.grid import slugify
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.seeding import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(
    kind: FigureKind, source: FigureSource
) -> Iterator[tuple[dict[ScopeAxis, Any], Figure | UserError]]:
    """Draw every figure of a kind, one for each combination of values in its scope.

    Yields:
        The values by axis, and the figure or the error that prevented it.
    """
    for values, part in source.split(kind.scope):
        try:
            yield values, kind.draw(part)
        except UserError as error:
            yield values, error


def write_figures(
    kind: FigureKind, source: FigureSource, output: Path
) -> Iterator[tuple[Path, UserError | None]]:
    """Write every figure of a kind.

    Args:
        kind: figure to draw.
        source: results to draw it from.
        output: a ``.png`` or ``.svg`` file for a single figure; or a folder, which receives each
            figure in both formats.

    Yields:
        The path of each file, and the error if the figure could not be drawn.

    Raises:
        FigureError: if ``output`` is one file for several figures or has an unknown suffix.
    """
    if output.suffix.lower() not in {"", *FORMATS} and not output.is_dir():
        raise FigureError(
            f"{output}: figures are written as {' or '.join(sorted(FORMATS))}; a folder whose "
            "name contains a dot must already exist"
        )
    if output.suffix.lower() in FORMATS:
        _check_single(kind, source, output)
    name_counts = Counter(_slug(kind, values) for values in source.scopes_of_whole_grid(kind.scope))
    for values, figure in draw_all(kind, source):
        name = _slug(kind, values)
        if name_counts[name] > 1:
            name += f"-{digest({'part': list(values.values())})[:8]}"
        for path in _paths(output, name):
            if isinstance(figure, UserError):
                yield path, figure
            else:
                save(figure, path)
                yield path, None


def _check_single(kind: FigureKind, source: FigureSource, output: Path) -> None:
    """Raise `FigureError` if the source has several figures of this kind."""
    combinations = [values for values, _ in source.split(kind.scope)]
    if len(combinations) > 1:
        options = " and ".join(
            f"--{axis.replace('_', '-')}"
            for axis in kind.scope
            if len({values[axis] for values in combinations}) > 1
        )
        raise FigureError(
            f"{output}: this grid has {len(combinations)} figures of kind {kind.name}; select one "
            f"with {options}, or name a folder as the output"
        )


def _paths(output: Path, name: str) -> list[Path]:
    if output.suffix.lower() in FORMATS:
        return [output]
    return [output / f"{name}{suffix}" for suffix in sorted(FORMATS)]


def _slug(kind: FigureKind, values: dict[ScopeAxis, Any]) -> str:
    parts = [f"L{value}" if axis == "latent_dim" else value for axis, value in values.items()]
    return "-".join(["figure", kind.name, *map(slugify, parts)])
