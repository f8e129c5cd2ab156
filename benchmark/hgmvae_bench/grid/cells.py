"""Cells and runs: what a grid expands to."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import yaml

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid.errors import GridError, Location, check_name
from hgmvae_bench.grid.spec import (
    Axis,
    DatasetVariant,
    GridSpec,
    ModelVariant,
    NetworkSettings,
    TableSpec,
    TrainingSettings,
)
from hgmvae_bench.plugins.protocols import Setting, UnknownNameError
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.utils.seeding import digest

# Part of every run key: raised when code changes what a run computes without changing a setting.
PROTOCOL_VERSION = 1


@dataclass(frozen=True, eq=False)
class Cell:
    """Dataset × model × latent dim with every setting that decides the result.

    Two cells are equal if their settings are.

    Attributes:
        dataset, model: registered names.
        image_size: side in pixels.
        latent_dim: L.
        model_settings: every setting of the model, defaults included.
        network, training: as in the grid.
    """

    dataset: str
    image_size: int
    model: str
    model_settings: Mapping[str, Setting]
    latent_dim: int
    network: NetworkSettings
    training: TrainingSettings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, apart from the data's content and the seed."""
        return {
            "protocol": PROTOCOL_VERSION,
            "dataset": {"name": self.dataset, "image_size": self.image_size},
            "model": {"name": self.model, "settings": dict(self.model_settings)},
            "latent_dim": self.latent_dim,
            "network": self.network.model_dump(),
            "training": self.training.model_dump(),
        }

    @cached_property
    def identity(self) -> str:
        """Hash of ``settings``: what the runs of a cell have in common in a results folder."""
        return identity_of(self.settings)

    @cached_property
    def slug(self) -> str:
        """Readable name, such as ``mnist_hgmvae-u_L8``."""
        return f"{slugify(self.dataset)}_{slugify(self.model)}_L{self.latent_dim}"


def identity_of(settings: Mapping[str, Any]) -> str:
    """The identity of the cell with these settings."""
    return digest(settings)[:16]


class Run(NamedTuple):
    """A cell and one seed, on data of known content. A grid may have a million of them.

    Attributes:
        cell: what to train.
        seed: 0, 1, … within the cell.
        data_digest: SHA-256 of the images and labels.
    """

    cell: Cell
    seed: int
    data_digest: str

    @property
    def key(self) -> str:
        """The run key: readable slug and hash; every random number of the run derives from it."""
        identity = f"{self.cell.identity}\n{self.data_digest}\n{self.seed}"
        short = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{self.cell.slug}_s{self.seed}_{short}"


@dataclass(frozen=True)
class Grid:
    """A validated grid, ready to expand.

    Attributes:
        spec: what is to be run.
        whole: the same before cells were filtered out, kept with the results.
        told: gives a fault as a line: the grid's file, the line and key there, and what is wrong.
    """

    spec: GridSpec
    full_spec: GridSpec
    format_error: Callable[[Location, str], str] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The whole grid as a grid file."""
        content = self.full_spec.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Hash (hex) of the whole grid file as it is kept with the results."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def cell(self, dataset: str, model: str, latent_dim: int) -> Cell:
        """The cell behind one entry of a table, named as the table names it."""
        names = dataset, model, latent_dim
        if names not in self._cells:
            data_name, image_size = self._resolved_datasets[dataset]
            model_name, settings = self._resolved_models[model]
            self._cells[names] = Cell(
                dataset=data_name,
                image_size=image_size,
                model=model_name,
                model_settings=settings,
                latent_dim=latent_dim,
                network=self.spec.network,
                training=self.spec.training,
            )
        return self._cells[names]

    # Looked up once: a large grid asks for each of them many times.

    @cached_property
    def _cells(self) -> dict[tuple[str, str, int], Cell]:
        return {}

    @cached_property
    def _resolved_datasets(self) -> dict[str, tuple[str, int]]:
        """Registered name and image size by the name that tables use."""
        resolved = {}
        for name in dict.fromkeys(name for table in self.spec.tables for name in table.datasets):
            variant = self.spec.datasets.get(name, DatasetVariant())
            registered = variant.dataset or name
            size = variant.image_size or resolve_dataset(registered).image_size
            resolved[name] = registered, size
        return resolved

    @cached_property
    def _resolved_models(self) -> dict[str, tuple[str, dict[str, Setting]]]:
        """Registered name and all settings by the name that tables use."""
        resolved = {}
        for name in dict.fromkeys(name for table in self.spec.tables for name in table.models):
            variant = self.spec.models.get(name, ModelVariant())
            registered = variant.model or name
            resolved[name] = registered, {**resolve_model(registered).settings, **variant.settings}
        return resolved

    def dataset_title(self, dataset: str) -> str:
        """A dataset's name in tables."""
        variant = self.spec.datasets.get(dataset, DatasetVariant())
        return variant.title or resolve_dataset(variant.dataset or dataset).title

    def model_title(self, model: str) -> str:
        """A model's name in tables."""
        variant = self.spec.models.get(model, ModelVariant())
        return variant.title or resolve_model(variant.model or model).title

    def table(self, name: str) -> TableSpec:
        """One of the grid's tables.

        Raises:
            UnknownNameError: if the grid has no table of that name.
        """
        tables = {table.name: table for table in self.spec.tables}
        if name not in tables:
            raise UnknownNameError(f"table of grid {self.spec.name}", name, list(tables))
        return tables[name]

    @cached_property
    def cells(self) -> dict[Cell, list[str]]:
        """Every cell once, in the tables' order, with the metrics that it needs."""
        cells: dict[str, tuple[Cell, dict[str, None]]] = {}
        for table in self.spec.tables:
            metrics = dict.fromkeys([*table.metrics, *self.spec.metrics])
            for names in itertools.product(table.datasets, table.models, table.latent_dims):
                cell = self.cell(*names)
                cells.setdefault(cell.identity, (cell, {}))[1].update(metrics)
        return {cell: list(metrics) for cell, metrics in cells.values()}

    @cached_property
    def cell_names(self) -> dict[Cell, tuple[str, str, int]]:
        """Dataset, model and latent dim of every cell as the tables name them, the first first."""
        names: dict[Cell, tuple[str, str, int]] = {}
        for table in self.spec.tables:
            for entry in itertools.product(table.datasets, table.models, table.latent_dims):
                names.setdefault(self.cell(*entry), entry)
        return names

    def with_models(self, models: list[str]) -> Grid:
        """The grid with those of the models that have an argument (``pythae:NAME``) in every table.

        No grid can list all of these; naming one is enough. Other names are left to `select`.

        Raises:
            GridError: if one is not known or cannot be used.
        """
        new = [name for name in models if ":" in name]
        for _, fault in itertools.chain.from_iterable(check_name(resolve_model, n) for n in new):
            raise GridError(fault)

        def joined(spec: GridSpec) -> GridSpec:
            tables = [
                table.with_models([name for name in new if name not in table.models])
                for table in spec.tables
            ]
            return spec.model_copy(update={"tables": tables})

        return replace(self, spec=joined(self.spec), full_spec=joined(self.full_spec))

    def select(
        self,
        datasets: list[str] | None = None,
        models: list[str] | None = None,
        latent_dims: list[int] | None = None,
        seeds: int | None = None,
        image_size: int | None = None,
        precision: str | None = None,
    ) -> Grid:
        """The part of the grid that filters leave; a table left without cells goes.

        ``seeds``, ``image_size`` and ``precision``, if given, take the place of the grid's own.

        Raises:
            UnknownNameError: if a filter names nothing that the grid has.
        """
        wanted: dict[Axis, list[Any] | None] = {
            "dataset": datasets,
            "model": models,
            "latent_dim": latent_dims,
        }
        for axis, values in wanted.items():
            known = list(dict.fromkeys(v for table in self.spec.tables for v in table.axis(axis)))
            for value in values or []:
                if value not in known:
                    raise UnknownNameError(
                        f"{axis} of grid {self.spec.name}", str(value), [str(v) for v in known]
                    )
        tables = []
        for table in self.spec.tables:
            kept = {
                f"{axis}s": [v for v in table.axis(axis) if values is None or v in values]
                for axis, values in wanted.items()
            }
            if all(kept.values()):
                tables.append(table.model_copy(update=kept))
        if not tables:
            raise GridError(
                f"grid {self.spec.name}: the filters leave no cell; "
                "no single table has all of the datasets, models and latent dims that they name"
            )
        changes: dict[str, Any] = {}
        if seeds is not None:
            changes["seeds"] = seeds
        if precision is not None:
            changes["training"] = self.spec.training.model_copy(update={"precision": precision})
        if image_size is not None:
            names = dict.fromkeys(name for table in self.spec.tables for name in table.datasets)
            changes["datasets"] = {
                name: self.spec.datasets.get(name, DatasetVariant()).model_copy(
                    update={"image_size": image_size}
                )
                for name in names
            }
        return replace(
            self,
            spec=self.spec.model_copy(update={**changes, "tables": tables}),
            full_spec=self.full_spec.model_copy(update=changes),
        )


def slugify(name: str) -> str:
    """A registered name as part of a file's name: a folder's is a path. Keys tell by their hash."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings, such as settings, as one, with dots between the keys."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values
