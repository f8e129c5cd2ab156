"""Grids: which cells to run, with which settings, for which tables.

A grid is a YAML file. It names its tables; each table names datasets, models, latent dims and
metrics. The cells of the grid are the union of its tables' cells, so what several tables need is
trained once, and a cell computes just the metrics that its tables (and the grid's own ``metrics``)
ask for.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.errors import UserError
from hgmvae_bench.plugins import METRICS, MODELS, PluginError, Setting, UnknownNameError
from hgmvae_bench.seeding import digest

Axis = Literal["dataset", "metric", "model", "latent_dim"]
Name = Annotated[str, Field(min_length=1)]
LatentDim = Annotated[int, Field(ge=1, strict=True)]

# Part of every run key: raised when code changes what a run computes without changing a setting.
PROTOCOL = 1


class GridError(UserError, ValueError):
    """A grid file that cannot be used; one line per fault: file, line, key, what was expected."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Strict):
    """Size of the shared network.

    Attributes:
        width: channels of the first of five convolutions; each further one doubles them.
    """

    width: int = Field(default=32, ge=1)


class TrainingSettings(_Strict):
    """How every model of the grid is trained (AdamW).

    Attributes:
        epochs: passes over the training images, any pretraining counted in.
        batch_size: images per step; an incomplete last batch is left out of the epoch.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        train_images: train on only the first so many images; all if not given.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    train_images: int | None = Field(default=None, ge=2)


class DatasetVariant(_Strict):
    """A dataset as a grid uses it.

    Attributes:
        dataset: registered name; the key in ``datasets`` if not given.
        title: name in tables; the plug-in's if not given.
        image_size: side in pixels; the plug-in's if not given.
    """

    dataset: Name | None = None
    title: Name | None = None
    image_size: int | None = Field(default=None, ge=1)


class ModelVariant(_Strict):
    """A model as a grid uses it: several variants of one model may stand side by side.

    Attributes:
        model: registered name; the key in ``models`` if not given.
        title: name in tables; the plug-in's if not given.
        settings: the model's settings that differ from its defaults.
    """

    model: Name | None = None
    title: Name | None = None
    settings: dict[str, Setting] = Field(default_factory=dict)


class TableSpec(_Strict):
    """One table: the cells that it needs and how it is laid out.

    Attributes:
        name: what ``hgmvae-bench table NAME`` asks for.
        title: caption.
        datasets, models: names, or keys of the grid's ``datasets`` and ``models``.
        latent_dims: latent dimensions L.
        metrics: registered names.
        rows, columns: the axes from the outside in. Together they are all four axes; an axis with
            a single value may be left out.
    """

    name: Name
    title: Name
    datasets: list[Name] = Field(min_length=1)
    models: list[Name] = Field(min_length=1)
    latent_dims: list[LatentDim] = Field(min_length=1)
    metrics: list[Name] = Field(min_length=1)
    rows: list[Axis]
    columns: list[Axis]

    def axis(self, axis: Axis) -> list[Any]:
        """The values along one axis."""
        values: dict[Axis, list[Any]] = {
            "dataset": self.datasets,
            "metric": self.metrics,
            "model": self.models,
            "latent_dim": self.latent_dims,
        }
        return values[axis]

    def showing(self, metrics: list[str]) -> TableSpec:
        """The same table for other metrics."""
        rows = self.rows if "metric" in [*self.rows, *self.columns] else [*self.rows, "metric"]
        return TableSpec(**{**dict(self), "metrics": metrics, "rows": rows})

    @model_validator(mode="after")
    def _check_layout(self) -> TableSpec:
        named = [*self.rows, *self.columns]
        for axis in ("dataset", "metric", "model", "latent_dim"):
            values = self.axis(axis)
            if len(set(values)) < len(values):
                raise ValueError(f"the table names a {axis} twice: {values}")
            if len(values) > 1 and axis not in named:
                raise ValueError(
                    f"the table has {len(values)} values of {axis}, so {axis} must "
                    "stand in rows or columns"
                )
        if len(set(named)) < len(named):
            raise ValueError(f"an axis stands twice in rows and columns: {named}")
        return self


class GridSpec(_Strict):
    """The content of a grid file.

    Attributes:
        name: for messages and file names.
        title: one line for ``hgmvae-bench list grids``.
        seeds: runs per cell.
        network, training: settings of every run.
        datasets, models: settings of single datasets and models, by the name that tables use.
        metrics: computed for every cell beyond what its tables ask for.
        tables: what the grid is for.
    """

    name: Name
    title: Name
    seeds: int = Field(default=10, ge=1)
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    datasets: dict[Name, DatasetVariant] = Field(default_factory=dict)
    models: dict[Name, ModelVariant] = Field(default_factory=dict)
    metrics: list[Name] = Field(default_factory=list)
    tables: list[TableSpec] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """Dataset × model × latent dim with every setting that decides the result.

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
    model_settings: Mapping[str, Setting] = field(hash=False)
    latent_dim: int
    network: NetworkSettings
    training: TrainingSettings

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, apart from the data's content and the seed."""
        return {
            "protocol": PROTOCOL,
            "dataset": {"name": self.dataset, "image_size": self.image_size},
            "model": {"name": self.model, "settings": dict(self.model_settings)},
            "latent_dim": self.latent_dim,
            "network": self.network.model_dump(),
            "training": self.training.model_dump(),
        }

    @cached_property
    def identity(self) -> str:
        """Hash of ``settings``: what the runs of a cell have in common in a results folder."""
        return digest(self.settings)[:16]

    @property
    def slug(self) -> str:
        """Readable name, such as ``mnist_hgmvae-u_L8``."""
        # A folder's name is a path; the key's hash keeps keys apart.
        dataset = re.sub(r"[^A-Za-z0-9.-]+", "-", self.dataset).strip("-")
        return f"{dataset}_{self.model}_L{self.latent_dim}"


@dataclass(frozen=True)
class Run:
    """A cell and one seed, on data of known content.

    Attributes:
        cell: what to train.
        seed: 0, 1, … within the cell.
        data_digest: SHA-256 of the images and labels.
    """

    cell: Cell
    seed: int
    data_digest: str

    @cached_property
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
    """

    spec: GridSpec
    whole: GridSpec

    @property
    def text(self) -> str:
        """The whole grid as a grid file."""
        content = self.whole.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def cell(self, dataset: str, model: str, latent_dim: int) -> Cell:
        """The cell behind one entry of a table, named as the table names it."""
        data_variant = self.spec.datasets.get(dataset, DatasetVariant())
        model_variant = self.spec.models.get(model, ModelVariant())
        data_name, model_name = data_variant.dataset or dataset, model_variant.model or model
        return Cell(
            dataset=data_name,
            image_size=data_variant.image_size or resolve_dataset(data_name).image_size,
            model=model_name,
            model_settings={**MODELS[model_name].settings, **model_variant.settings},
            latent_dim=latent_dim,
            network=self.spec.network,
            training=self.spec.training,
        )

    def dataset_title(self, dataset: str) -> str:
        """A dataset's name in tables."""
        variant = self.spec.datasets.get(dataset, DatasetVariant())
        return variant.title or resolve_dataset(variant.dataset or dataset).title

    def model_title(self, model: str) -> str:
        """A model's name in tables."""
        variant = self.spec.models.get(model, ModelVariant())
        return variant.title or MODELS[variant.model or model].title

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
        by_name: dict[tuple[str, str, int], Cell] = {}
        cells: dict[str, tuple[Cell, dict[str, None]]] = {}
        for table in self.spec.tables:
            for names in itertools.product(table.datasets, table.models, table.latent_dims):
                if names not in by_name:
                    by_name[names] = self.cell(*names)
                cell = by_name[names]
                _, metrics = cells.setdefault(cell.identity, (cell, {}))
                metrics.update(dict.fromkeys([*table.metrics, *self.spec.metrics]))
        return {cell: list(metrics) for cell, metrics in cells.values()}

    def select(
        self,
        datasets: list[str] | None = None,
        models: list[str] | None = None,
        latent_dims: list[int] | None = None,
        seeds: int | None = None,
        image_size: int | None = None,
    ) -> Grid:
        """The part of the grid that filters leave; a table left without cells goes.

        ``seeds`` and ``image_size``, if given, take the place of the grid's own.

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
        if image_size is not None:
            names = dict.fromkeys(name for table in self.spec.tables for name in table.datasets)
            changes["datasets"] = {
                name: self.spec.datasets.get(name, DatasetVariant()).model_copy(
                    update={"image_size": image_size}
                )
                for name in names
            }
        return Grid(
            self.spec.model_copy(update={**changes, "tables": tables}),
            self.whole.model_copy(update=changes),
        )


def grid_names() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("hgmvae_bench").joinpath("grids").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_grid(name_or_path: str) -> Grid:
    """Read a grid by the name of one that comes with the package, or from a YAML file.

    Raises:
        UnknownNameError: if there is no such grid.
        GridError: if the file cannot be read or does not describe a grid.
    """
    if Path(name_or_path).suffix in {".yaml", ".yml"}:
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(f"cannot read grid file {name_or_path}: {error}") from error
        return parse_grid(text, name_or_path)
    if name_or_path not in grid_names():
        raise UnknownNameError("grid", name_or_path, [*grid_names(), "PATH.yaml"])
    file = resources.files("hgmvae_bench").joinpath("grids") / f"{name_or_path}.yaml"
    return parse_grid(file.read_text(encoding="utf-8"), f"{name_or_path}.yaml")


def parse_grid(text: str, filename: str) -> Grid:
    """Validate the text of a grid file; ``filename`` is for messages.

    Raises:
        GridError: with a line per fault: file, line, key and what was expected.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise GridError(f"{filename}{line}: not valid YAML: {problem}") from error

    faults: list[tuple[tuple[str | int, ...], str]] = list(_duplicate_keys(node))
    spec: GridSpec | None = None
    try:
        spec = GridSpec.model_validate(content)
    except ValidationError as error:
        faults += [(fault["loc"], _explain(fault)) for fault in error.errors()]
    if spec is not None:
        faults += _unknown_names(spec)
    if spec is None or faults:
        raise GridError(
            "\n".join(
                f"{filename}:{_line(node, location)}: {_dotted(location)}{message}"
                for location, message in faults
            )
        )
    return Grid(spec, spec)


def _explain(fault: Any) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        return "this key is required"
    if fault["type"] == "extra_forbidden":
        return "unknown key"
    return f"{message[0].lower()}{message[1:]}, got {fault['input']!r}"


def _unknown_names(spec: GridSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Names that no plug-in answers to, and settings that a model does not have."""
    for key, dataset in spec.datasets.items():
        yield from _dataset_faults(dataset.dataset or key, ("datasets", key))
    for key, variant in spec.models.items():
        name = variant.model or key
        faults = list(_lookup(MODELS, name, ("models", key)))
        yield from faults
        if not faults:
            defaults = MODELS[name].settings
            for setting, value in variant.settings.items():
                location = ("models", key, "settings", setting)
                if setting not in defaults:
                    yield (
                        location,
                        str(UnknownNameError(f"setting of {name}", setting, list(defaults))),
                    )
                elif not _same_kind(value, defaults[setting]):
                    yield (
                        location,
                        (f"expected a value like the default {defaults[setting]!r}, got {value!r}"),
                    )
    for i, metric in enumerate(spec.metrics):
        yield from _lookup(METRICS, metric, ("metrics", i))
    names = [table.name for table in spec.tables]
    for t, table in enumerate(spec.tables):
        if table.name in names[:t]:
            yield ("tables", t, "name"), f"a second table is called '{table.name}'"
        for i, name in enumerate(table.datasets):
            if name not in spec.datasets:
                yield from _dataset_faults(name, ("tables", t, "datasets", i))
        for i, name in enumerate(table.models):
            if name not in spec.models:
                yield from _lookup(MODELS, name, ("tables", t, "models", i))
        for i, name in enumerate(table.metrics):
            yield from _lookup(METRICS, name, ("tables", t, "metrics", i))


def _lookup(
    registry: Any, name: str, location: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    names = registry.names()
    if name not in names:
        yield location, str(UnknownNameError(registry.kind, name, names))


def _dataset_faults(
    name: str, location: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    try:
        resolve_dataset(name)
    except (UnknownNameError, PluginError, ValueError) as error:
        yield location, str(error)


def _same_kind(value: Setting, default: Setting) -> bool:
    """Whether a setting's value is of its default's type (an int serves as a float)."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _duplicate_keys(node: yaml.Node | None) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Keys that a mapping has twice: YAML forbids them, PyYAML silently keeps the last."""
    stack: list[tuple[tuple[str | int, ...], yaml.Node | None]] = [((), node)]
    while stack:
        location, current = stack.pop()
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in current.value:
                if key.value in seen:
                    yield (*location, key.value), "this key stands twice"
                seen.add(key.value)
                stack.append(((*location, key.value), value))
        elif isinstance(current, yaml.SequenceNode):
            stack.extend(((*location, i), item) for i, item in enumerate(current.value))


def _line(node: yaml.Node | None, location: tuple[str | int, ...]) -> int:
    """Line (from 1) of the innermost part of ``location`` that stands in the file."""
    line = 1
    for part in location:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            child = node.value[part] if part < len(node.value) else None
            line = child.start_mark.line + 1 if child is not None else line
        if child is None:
            break
        node = child
    return line


def _dotted(location: tuple[str | int, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return f"{path}: " if path else ""
