"""Grids: the cells to run, their settings, and the tables that need them.

A grid is a YAML file that names its tables. Each table names datasets, models, latent dimensions
and metrics. The cells of the grid are the union of its tables' cells, so a cell that several tables
need is trained once. A cell computes the metrics of its tables and those of the grid's ``metrics``.
"""

from hgmvae_bench.grid.cells import (
    PROTOCOL_VERSION,
    Cell,
    Grid,
    Run,
    different_settings,
    flatten,
    slugify,
)
from hgmvae_bench.grid.errors import GridError
from hgmvae_bench.grid.files import grid_names, load_grid, parse_grid
from hgmvae_bench.grid.make import GridLike, make_grid
from hgmvae_bench.grid.spec import (
    Axis,
    DatasetVariant,
    GridSpec,
    ModelVariant,
    NetworkSettings,
    TableSpec,
    TrainingSettings,
)

__all__ = [
    "PROTOCOL_VERSION",
    "Axis",
    "Cell",
    "DatasetVariant",
    "Grid",
    "GridError",
    "GridLike",
    "GridSpec",
    "ModelVariant",
    "NetworkSettings",
    "Run",
    "TableSpec",
    "TrainingSettings",
    "different_settings",
    "flatten",
    "grid_names",
    "load_grid",
    "make_grid",
    "parse_grid",
    "slugify",
]
