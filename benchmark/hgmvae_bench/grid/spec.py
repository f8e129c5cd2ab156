"""What a grid file says, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hgmvae_bench.plugins.protocols import Setting

Axis = Literal["dataset", "metric", "model", "latent_dim"]
Name = Annotated[str, Field(min_length=1)]
# Files are called after it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$")]
# YAML's ``true`` and ``yes`` would pass for 1.
Count = Annotated[int, Field(ge=1, strict=True)]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    return value


# Not strict: YAML takes ``1e-3``, without a point, for text.
Number = Annotated[float, BeforeValidator(_no_boolean)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSettings(_Strict):
    """Size of the shared network.

    Attributes:
        width: channels of the first of five convolutions; each further one doubles them.
    """

    width: Count = 32


class TrainingSettings(_Strict):
    """How every model of the grid is trained (AdamW).

    Attributes:
        epochs: passes over the training images, any pretraining counted in.
        batch_size: images per step; an incomplete last batch is left out of the epoch.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        train_images: train on only the first so many images; all if not given.
        precision: of the networks' arithmetic: ``float32``; ``tf32`` (NVIDIA GPUs); ``bf16``.
            Metrics are float32 always, and loss terms too, but for their products in ``tf32``.
    """

    epochs: Count = 10
    batch_size: int = Field(default=128, ge=2, strict=True)
    learning_rate: Number = Field(default=1e-3, gt=0)
    weight_decay: Number = Field(default=1e-2, ge=0)
    train_images: int | None = Field(default=None, ge=2, strict=True)
    precision: Literal["float32", "tf32", "bf16"] = "float32"


class DatasetVariant(_Strict):
    """A dataset as a grid uses it.

    Attributes:
        dataset: registered name; the key in ``datasets`` if not given.
        title: name in tables; the plug-in's if not given.
        image_size: side in pixels; the plug-in's if not given.
    """

    dataset: Name | None = None
    title: Name | None = None
    image_size: Count | None = None


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

    name: FileName
    title: Name
    datasets: list[Name] = Field(min_length=1)
    models: list[Name] = Field(min_length=1)
    latent_dims: list[Count] = Field(min_length=1)
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

    def with_metrics(self, metrics: list[str]) -> TableSpec:
        """The same table for other metrics."""
        rows = self.rows if "metric" in [*self.rows, *self.columns] else [*self.rows, "metric"]
        return TableSpec(**{**dict(self), "metrics": metrics, "rows": rows})

    def with_models(self, names: list[str]) -> TableSpec:
        """The same table with more entries on the axis of models, such as controls."""
        if not names:
            return self
        rows = self.rows if "model" in [*self.rows, *self.columns] else [*self.rows, "model"]
        return TableSpec(**{**dict(self), "models": [*self.models, *names], "rows": rows})

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

    name: FileName
    title: Name
    seeds: Count = 10
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    datasets: dict[Name, DatasetVariant] = Field(default_factory=dict)
    models: dict[Name, ModelVariant] = Field(default_factory=dict)
    metrics: list[Name] = Field(default_factory=list)
    tables: list[TableSpec] = Field(min_length=1)
