"""Cells and runs, to which a grid expands."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import ValidationError

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid.errors import GridError, check_name, describe_spec_error
from hgmvae_bench.grid.spec import (
    Axis,
    DatasetVariant,
    GridSpec,
    ModelVariant,
    NetworkSettings,
    TableSpec,
    TrainingSettings,
)
from hgmvae_bench.grid.yaml12 import Location, dump, format_location
from hgmvae_bench.plugins.protocols import HasAddedSettings, ModelPlugin, Setting, UnknownNameError
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.utils.seeding import digest
from hgmvae_bench.utils.text import distinct_titles

PROTOCOL_VERSION = 1
"""Part of every run key, raised when a change of code changes results but no setting."""

MAX_SLUG = 80
"""Maximum length of a slug. A file name has at most 255 bytes and holds two of them."""


@dataclass(frozen=True, eq=False)
class Cell:
    """Dataset × model × latent dim with every setting that affects the result.

    Cells with equal settings are equal.

    Attributes:
        dataset, model: registered names.
        image_size: side in pixels.
        latent_dim: L.
        model_settings: every setting of the model, defaults included (see `keyed_settings`).
        network, training: settings of the grid.
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
        """Everything that affects the result, except the content of the data and the seed."""
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
        """Hash (16 hex digits) of ``settings``, which the records of the cell's runs share."""
        return identity_of(self.settings)

    @cached_property
    def slug(self) -> str:
        """Readable name, for example ``mnist_hgmvae-u_L8``."""
        return f"{slugify(self.dataset)}_{slugify(self.model)}_L{self.latent_dim}"


def identity_of(settings: Mapping[str, Any]) -> str:
    """Return the identity of the cell with these settings."""
    return digest(settings)[:16]


class Run(NamedTuple):
    """A cell and one seed, on data of known content.

    A named tuple, because a large grid has a million of them.

    Attributes:
        cell: dataset, model and settings.
        seed: 0, 1, … within the cell.
        data_digest: SHA-256 of the images, labels and factors.
    """

    cell: Cell
    seed: int
    data_digest: str

    @property
    def key(self) -> str:
        """The run key: readable slug and hash. Every random number of the run derives from it."""
        identity = f"{self.cell.identity}\n{self.data_digest}\n{self.seed}"
        short = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{self.cell.slug}_s{self.seed}_{short}"


@dataclass(frozen=True)
class Grid:
    """A validated grid.

    Attributes:
        spec: the part of the grid that the filters leave.
        full_spec: the grid before `select`, which is stored with the results.
        format_error: formats the location and message of an error as a line with the grid's file,
            the line in it and the key.
    """

    spec: GridSpec
    full_spec: GridSpec
    format_error: Callable[[Location, str], str] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The grid before `select`, as a grid file."""
        return dump(self.full_spec.model_dump(mode="json", exclude_defaults=True))

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of ``text``."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def cell(self, dataset: str, model: str, latent_dim: int) -> Cell:
        """Return the cell of one table entry, given the names that the table uses."""
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

    # Cached, because every entry of a large grid looks these up.

    @cached_property
    def _cells(self) -> dict[tuple[str, str, int], Cell]:
        return {}

    def _axis_values(self, axis: Axis) -> list[Any]:
        """Values of one axis in any table, each once."""
        return list(dict.fromkeys(v for table in self.spec.tables for v in table.axis(axis)))

    @cached_property
    def _resolved_datasets(self) -> dict[str, tuple[str, int]]:
        """Registered name and image size by the name that tables use."""
        resolved = {}
        for name in self._axis_values("dataset"):
            variant = self.spec.datasets.get(name, DatasetVariant())
            registered = variant.dataset or name
            size = variant.image_size or resolve_dataset(registered).image_size
            resolved[name] = registered, size
        return resolved

    @cached_property
    def _resolved_models(self) -> dict[str, tuple[str, dict[str, Setting]]]:
        """Registered name and keyed settings by the name that tables use."""
        resolved = {}
        for name in self._axis_values("model"):
            variant = self.spec.models.get(name, ModelVariant())
            registered = variant.model or name
            resolved[name] = registered, keyed_settings(resolve_model(registered), variant.settings)
        return resolved

    def dataset_title(self, dataset: str) -> str:
        """Return a dataset's title in tables, with its name if another one has the same title."""
        return _distinct_title(dataset, self._axis_values("dataset"), self._dataset_title)

    def _dataset_title(self, dataset: str) -> str:
        variant = self.spec.datasets.get(dataset, DatasetVariant())
        return variant.title or resolve_dataset(variant.dataset or dataset).title

    def model_title(self, model: str) -> str:
        """Return a model's title in tables, with its name if another model has the same title."""
        return _distinct_title(model, self._axis_values("model"), self._model_title)

    def _model_title(self, model: str) -> str:
        variant = self.spec.models.get(model, ModelVariant())
        return variant.title or resolve_model(variant.model or model).title

    def table(self, name: str) -> TableSpec:
        """Return the table called ``name``.

        Raises:
            UnknownNameError: if the grid has no table of that name.
        """
        tables = {table.name: table for table in self.spec.tables}
        if name not in tables:
            raise UnknownNameError(f"table of grid {self.spec.name}", name, list(tables))
        return tables[name]

    @cached_property
    def cells(self) -> dict[Cell, list[str]]:
        """Every cell once, in the order of the tables, with its metrics."""
        cells: dict[str, tuple[Cell, dict[str, None]]] = {}
        for table in self.spec.tables:
            metrics = dict.fromkeys([*table.metrics, *self.spec.metrics])
            for names in itertools.product(table.datasets, table.models, table.latent_dims):
                cell = self.cell(*names)
                cells.setdefault(cell.identity, (cell, {}))[1].update(metrics)
        return {cell: list(metrics) for cell, metrics in cells.values()}

    @cached_property
    def cell_names(self) -> dict[Cell, tuple[str, str, int]]:
        """Dataset, model and latent dim of every cell, by the first name that a table uses."""
        names: dict[Cell, tuple[str, str, int]] = {}
        for table in self.spec.tables:
            for entry in itertools.product(table.datasets, table.models, table.latent_dims):
                names.setdefault(self.cell(*entry), entry)
        return names

    def cell_name(self, cell: Cell) -> str:
        """Return a cell's name for readers, such as ``mnist, HGMVAE-U, L = 8``."""
        dataset, model, latent_dim = self.cell_names[cell]
        return f"{dataset}, {self.model_title(model)}, L = {latent_dim}"

    def with_models(self, models: list[str]) -> Grid:
        """Return the grid with models in every table, after the table's own.

        Raises:
            GridError: if a model is unknown or its argument invalid.
        """
        for name in models:
            for _, message in check_name(resolve_model, name):
                raise GridError(message)

        def extend(spec: GridSpec) -> GridSpec:
            tables = [table.with_models(models) for table in spec.tables]
            return spec.model_copy(update={"tables": tables})

        return replace(self, spec=extend(self.spec), full_spec=extend(self.full_spec))

    def select(
        self,
        datasets: list[str] | None = None,
        models: list[str] | None = None,
        latent_dims: list[int] | None = None,
        seeds: int | None = None,
        image_size: int | None = None,
        precision: str | None = None,
    ) -> Grid:
        """Return the cells that pass the filters; a table without any of them is left out.

        ``seeds``, ``image_size`` and ``precision`` replace the grid's own settings.

        Raises:
            UnknownNameError: if a filter names something that the grid does not have.
            GridError: if no cell passes, or a replaced setting is out of range.
        """
        filters: dict[Axis, list[Any] | None] = {
            "dataset": datasets,
            "model": models,
            "latent_dim": latent_dims,
        }
        tables = self._filtered_tables(filters)
        changes: dict[str, Any] = {}
        if seeds is not None:
            changes["seeds"] = seeds
        if precision is not None:
            changes["training"] = {**dict(self.spec.training), "precision": precision}
        if image_size is not None:
            changes["datasets"] = {
                name: {
                    **dict(self.spec.datasets.get(name, DatasetVariant())),
                    "image_size": image_size,
                }
                for name in self._axis_values("dataset")
            }
        return replace(
            self,
            spec=changed_spec(self.spec, {**changes, "tables": tables}),
            full_spec=changed_spec(self.full_spec, changes),
        )

    def _filtered_tables(self, filters: Mapping[Axis, list[Any] | None]) -> list[TableSpec]:
        """Tables with the values that the filters name; None keeps every value of an axis."""
        for axis, values in filters.items():
            known = self._axis_values(axis)
            for value in values or []:
                if value not in known:
                    kind = f"{axis} of grid {self.spec.name}"
                    raise UnknownNameError(kind, str(value), [str(each) for each in known])
        tables = []
        for table in self.spec.tables:
            kept = {
                f"{axis}s": [v for v in table.axis(axis) if values is None or v in values]
                for axis, values in filters.items()
            }
            if all(kept.values()):
                tables.append(table.model_copy(update=kept))
        if not tables:
            raise GridError(
                f"grid {self.spec.name}: no cell passes the filters, because no single table has "
                "all of the datasets, models and latent dims that they name"
            )
        return tables


def changed_spec(spec: GridSpec, changes: Mapping[str, Any]) -> GridSpec:
    """Return a specification with changes, which are validated.

    Raises:
        GridError: if a change is out of range.
    """
    try:
        return GridSpec.model_validate({**dict(spec), **changes})
    except ValidationError as error:
        lines = [
            f"{format_location(each['loc'])}: {describe_spec_error(each)}"
            for each in error.errors()
        ]
        raise GridError(f"grid {spec.name}: {'; '.join(dict.fromkeys(lines))}") from error


def keyed_settings(plugin: ModelPlugin, changes: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings of a model that enter the run key.

    These are all of its settings, except for added ones (`HasAddedSettings`) with their default.

    Args:
        plugin: the model.
        changes: values that replace the defaults.
    """
    added = plugin.added_settings if isinstance(plugin, HasAddedSettings) else ()
    settings = {**plugin.settings, **changes}
    return {
        name: value
        for name, value in settings.items()
        if name not in added or value != plugin.settings[name]
    }


def _distinct_title(name: str, names: Iterable[str], title_of: Callable[[str], str]) -> str:
    """Return the title of a name, followed by the name if others have the same title."""
    return distinct_titles({each: title_of(each) for each in [*names, name]})[name]


def slugify(name: str) -> str:
    """Convert a registered name, which may contain a path, to a part of a file name.

    Different names may have the same slug; the hash in a run key distinguishes them. A long name
    is cut to its last `MAX_SLUG` characters.
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)[-MAX_SLUG:].strip("-")


def different_settings(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Settings in which two cells differ: dotted name, old and new value.

    A value is None if the cell lacks the setting.

    Args:
        old: settings of a cell, nested.
        new: settings of the other.
    """
    before, after = flatten(old), flatten(new)
    return [
        (name, before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, such as settings, to one with dotted keys."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values
