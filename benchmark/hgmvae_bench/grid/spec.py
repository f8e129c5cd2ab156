"""The content of a grid file, validated by pydantic."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from hgmvae_bench.plugins.protocols import Setting
from hgmvae_bench.utils.bounds import MAX_BATCH_SIZE, MAX_LATENT_DIM, MAX_WIDTH, Precision
from hgmvae_bench.utils.text import hidden_characters, quote

Axis = Literal["dataset", "metric", "model", "latent_dim"]


def _refuse_hidden_characters(text: str) -> str:
    """Refuse characters that change what a terminal or a page shows around them."""
    for i, escape in hidden_characters(text).items():
        raise ValueError(f"character {i + 1} is the invisible character {escape}; remove it")
    return text


def _check_number(value: object) -> object:
    """Refuse booleans and numbers that are not finite.

    Versions of pydantic differ in which bound they name for a NaN.
    """
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    return _check_finite(value)


def _check_finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return value


def _check_setting(value: Setting) -> Setting:
    """Refuse numbers that are not finite, and control characters."""
    if isinstance(value, str):
        return _refuse_hidden_characters(value)
    for number in value if isinstance(value, list) else [value]:
        _check_finite(number)
    return value


# A name may contain a path: folder:PATH.
Name = Annotated[
    str, Field(min_length=1, max_length=1000), AfterValidator(_refuse_hidden_characters)
]
# These names are parts of file names.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$", max_length=100)]
# Strict, because True is an int in Python.
Integer = Annotated[int, Field(strict=True)]
LatentDim = Annotated[int, Field(ge=1, le=MAX_LATENT_DIM, strict=True)]
Number = Annotated[float, BeforeValidator(_check_number), Field(allow_inf_nan=False)]
SettingValue = Annotated[Setting, AfterValidator(_check_setting)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Strict):
    """Size of the shared network.

    Attributes:
        width: channels of the first of five convolutions; each further one doubles them.
    """

    width: Integer = Field(default=32, ge=1, le=MAX_WIDTH)


class TrainingSettings(_Strict):
    """Training settings of every model of the grid; the optimiser is AdamW.

    Attributes:
        epochs: passes over the training images, pretraining included.
        batch_size: images per step; an incomplete last batch is left out of the epoch.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        train_images: number of training images, the first of the dataset; all if None.
        precision: arithmetic of the networks: ``float32``, ``tf32`` (NVIDIA GPUs) or ``bf16``.
            Metrics and loss terms are always computed in float32, except for the matrix products
            of loss terms in ``tf32``.
    """

    epochs: Integer = Field(default=10, ge=1, le=100_000)
    batch_size: Integer = Field(default=128, ge=2, le=MAX_BATCH_SIZE)
    learning_rate: Number = Field(default=1e-3, gt=0)
    weight_decay: Number = Field(default=1e-2, ge=0)
    train_images: Annotated[Integer, Field(ge=2)] | None = None
    precision: Precision = "float32"


class DatasetVariant(_Strict):
    """A dataset with the settings that a grid gives it.

    Attributes:
        dataset: registered name; the key in ``datasets`` if None.
        title: name in tables; the plug-in's if None.
        image_size: side in pixels; the plug-in's if None.
    """

    dataset: Name | None = None
    title: Name | None = None
    image_size: Annotated[Integer, Field(ge=1, le=1024)] | None = None


class ModelVariant(_Strict):
    """A model with the settings that a grid gives it. A grid may have several of one model.

    Attributes:
        model: registered name; the key in ``models`` if None.
        title: name in tables; the plug-in's if None.
        settings: settings that differ from the model's defaults.
    """

    model: Name | None = None
    title: Name | None = None
    settings: dict[str, SettingValue] = Field(default_factory=dict)


class TableSpec(_Strict):
    """One table: the cells that it needs, and its layout.

    Attributes:
        name: argument of ``hgmvae-bench table``.
        title: caption.
        datasets, models: registered names, or keys of the grid's ``datasets`` and ``models``.
        latent_dims: latent dimensions L.
        metrics: registered names.
        rows, columns: axes, outermost first, at least one each. Together they name every axis that
            has several values.
    """

    name: FileName
    title: Name
    datasets: list[Name] = Field(min_length=1)
    models: list[Name] = Field(min_length=1)
    latent_dims: list[LatentDim] = Field(min_length=1)
    metrics: list[Name] = Field(min_length=1)
    rows: list[Axis] = Field(min_length=1)
    columns: list[Axis] = Field(min_length=1)

    def axis(self, axis: Axis) -> list[Any]:
        """Return the values along one axis."""
        values: dict[Axis, list[Any]] = {
            "dataset": self.datasets,
            "metric": self.metrics,
            "model": self.models,
            "latent_dim": self.latent_dims,
        }
        return values[axis]

    def with_metrics(self, metrics: list[str]) -> TableSpec:
        """Return the table with other metrics."""
        rows = self.rows if "metric" in [*self.rows, *self.columns] else [*self.rows, "metric"]
        return TableSpec(**{**dict(self), "metrics": metrics, "rows": rows})

    def with_models(self, names: list[str]) -> TableSpec:
        """Return the table with more models after its own, without duplicates."""
        models = [*dict.fromkeys([*self.models, *names])]
        if models == self.models:
            return self
        rows = self.rows if "model" in [*self.rows, *self.columns] else [*self.rows, "model"]
        return TableSpec(**{**dict(self), "models": models, "rows": rows})

    @model_validator(mode="after")
    def _check_layout(self) -> TableSpec:
        named = [*self.rows, *self.columns]
        for axis in ("dataset", "metric", "model", "latent_dim"):
            values = self.axis(axis)
            if len(set(values)) < len(values):
                raise ValueError(f"the table names a {axis} twice: {quote(values)}")
            if len(values) > 1 and axis not in named:
                raise ValueError(
                    f"the table has {len(values)} values of {axis}, so rows or columns must "
                    f"contain {axis}"
                )
        if len(set(named)) < len(named):
            raise ValueError(f"rows and columns contain an axis twice: {quote(named)}")
        return self


class GridSpec(_Strict):
    """The content of a grid file.

    Attributes:
        name: used in messages and file names.
        title: one line for ``hgmvae-bench list grids``.
        seeds: runs per cell.
        network, training: settings of every run.
        datasets, models: variants of datasets and models, by the name that tables use.
        metrics: computed for every cell, in addition to those of its tables.
        tables: at least one; their cells make up the grid.
    """

    name: FileName
    title: Name
    seeds: Integer = Field(default=10, ge=1, le=10_000)
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    datasets: dict[Name, DatasetVariant] = Field(default_factory=dict)
    models: dict[Name, ModelVariant] = Field(default_factory=dict)
    metrics: list[Name] = Field(default_factory=list)
    tables: list[TableSpec] = Field(min_length=1)
