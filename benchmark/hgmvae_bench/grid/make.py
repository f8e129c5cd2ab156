"""Making grids in Python, without a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from hgmvae_bench.grid.cells import Grid
from hgmvae_bench.grid.errors import (
    GridError,
    describe_spec_error,
    find_errors,
    join_lines,
)
from hgmvae_bench.grid.files import load_grid
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.grid.yaml12 import located

GridLike = str | Path | Mapping[str, object] | GridSpec | Grid
"""A grid's name, a YAML file, the content of one as a mapping, or a grid."""


def make_grid(grid: GridLike) -> Grid:
    """Make a grid from its name, a YAML file, a mapping or a `GridSpec`.

    Example:
        >>> hb.make_grid({
        ...     "name": "mine", "title": "Two models", "seeds": 2,
        ...     "tables": [{
        ...         "name": "1", "title": "Clustering", "datasets": ["digits"],
        ...         "models": ["vae", "gmvae"], "latent_dims": [8], "metrics": ["sc"],
        ...         "rows": ["metric"], "columns": ["model"],
        ...     }],
        ... })

    Raises:
        UnknownNameError: if there is no grid of that name.
        GridError: if the file or the mapping does not describe a grid.
    """
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str | Path):
        return load_grid(str(grid))
    try:
        spec = grid if isinstance(grid, GridSpec) else GridSpec.model_validate(grid)
    except ValidationError as error:
        lines = [_format_error(each["loc"], describe_spec_error(each)) for each in error.errors()]
        raise GridError(join_lines(lines)) from error
    if errors := list(find_errors(spec)):
        raise GridError(join_lines(_format_error(*each) for each in errors))
    return Grid(spec, spec, _format_error)


_format_error = functools.partial(located, "grid")
