"""Grids: which cells to run, with which settings, for which tables.

A grid is a YAML file. It names its tables; each table names datasets, models, latent dims and
metrics. The cells of the grid are the union of its tables' cells, so what several tables need is
trained once, and a cell computes just the metrics that its tables (and the grid's own ``metrics``)
ask for.
"""

from hgmvae_bench.grid.cells import PROTOCOL_VERSION, Cell, Grid, Run, flatten, slugify
from hgmvae_bench.grid.errors import GridError
from hgmvae_bench.grid.files import grid_names, load_grid, parse_grid
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
    "GridSpec",
    "ModelVariant",
    "NetworkSettings",
    "Run",
    "TableSpec",
    "TrainingSettings",
    "flatten",
    "grid_names",
    "load_grid",
    "parse_grid",
    "slugify",
]
