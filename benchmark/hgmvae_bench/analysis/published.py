"""Published values: Tables 1–5 of Zhou, Liu & Du 2024."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import pandas as pd

ValueKey = tuple[str, str, str, int]
"""Dataset, metric, model and latent dim, by registered names."""

N_RUNS = 10
"""Runs that every published value is the mean of (section 3 of the paper)."""

ROUNDING = 0.0005
"""Largest rounding error of a published value: half a unit of its third decimal."""


def published() -> pd.DataFrame:
    """The published values, one per row.

    Columns: ``table`` (1 to 5, as text), ``dataset``, ``metric``, ``model`` (registered names),
    ``latent_dim``, ``value``, and ``note``, which says where the paper contradicts itself and is
    empty elsewhere.
    """
    with _tables_file().open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype={"table": str})
    frame["note"] = frame["note"].astype(object).fillna("")
    return frame


@functools.cache
def values_by_cell() -> Mapping[ValueKey, Mapping[str, tuple[float, str]]]:
    """Published value and note by cell and metric, for each table that has them."""
    cells: dict[ValueKey, dict[str, tuple[float, str]]] = {}
    for row in published().to_dict("records"):
        cell = (row["dataset"], row["metric"], row["model"], row["latent_dim"])
        cells.setdefault(cell, {})[row["table"]] = (row["value"], row["note"])
    return cells


def _tables_file() -> Traversable:
    """``results/paper/tables.csv``, packaged in ``hgmvae_bench/analysis/published_tables``."""
    packaged = resources.files("hgmvae_bench.analysis") / "published_tables/tables.csv"
    if packaged.is_file():
        return packaged
    return Path(__file__).parents[3] / "results/paper/tables.csv"
