"""Figures as files."""

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
    """Every figure of a kind that these results give, one for each value of its scope.

    Where one cannot be drawn, the reason comes in its place.
    """
    for values, part in source.split(kind.scope):
        try:
            yield values, kind.draw(part)
        except UserError as error:
            yield values, error


def write_figures(
    kind: FigureKind, source: FigureSource, output: Path
) -> Iterator[tuple[Path, UserError | None]]:
    """Write every figure of a kind; each file with the reason why it is lacking, if it is.

    Args:
        kind: what to draw.
        source: of what.
        output: a ``.png`` or ``.svg`` file for a single figure; or a folder, which gets each
            figure as PNG and as SVG.

    Raises:
        FigureError: if several figures should go into one file, or the file's suffix is unknown.
    """
    if output.suffix.lower() not in {"", *FORMATS} and not output.is_dir():
        raise FigureError(
            f"{output}: figures are written as {' or '.join(sorted(FORMATS))}; a folder with a "
            "point in its name has to exist"
        )
    if output.suffix.lower() in FORMATS:
        parts = [values for values, _ in source.split(kind.scope)]
        if len(parts) > 1:
            options = " and ".join(
                f"--{axis.replace('_', '-')}"
                for axis in kind.scope
                if len({values[axis] for values in parts}) > 1
            )
            raise FigureError(
                f"figure {kind.name} of this grid is {len(parts)} figures; select one with "
                f"{options}, or name a folder as the output"
            )
    alike = Counter(_slug(kind, values) for values in source.scopes_of_whole_grid(kind.scope))
    for values, figure in draw_all(kind, source):
        name = _slug(kind, values)
        if alike[name] > 1:
            name += f"-{digest({'part': list(values.values())})[:8]}"
        for path in _paths(output, name):
            if isinstance(figure, UserError):
                yield path, figure
            else:
                save(figure, path)
                yield path, None


def _paths(output: Path, name: str) -> list[Path]:
    if output.suffix.lower() in FORMATS:
        return [output]
    return [output / f"{name}{suffix}" for suffix in sorted(FORMATS)]


def _slug(kind: FigureKind, values: dict[ScopeAxis, Any]) -> str:
    place = [f"L{value}" if axis == "latent_dim" else value for axis, value in values.items()]
    return slugify("-".join(["figure", kind.name, *place]))
