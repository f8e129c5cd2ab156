"""Records: what is known of a finished run, one JSON file each."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from hgmvae_bench.grid import Cell, Run

Status = Literal["complete", "diverged", "failed"]
Fingerprint = dict[str, str | int | float]

# What an error says may hold bytes that are no text, as the name of a file does.
Message = Annotated[
    str, AfterValidator(lambda text: text.encode(errors="backslashreplace").decode())
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricValue(_Frozen):
    """One metric of one run: a value with its fingerprint, or the reason why there is none.

    Attributes:
        value: finite, or None if missing.
        missing: why there is no value; None if there is one.
        fingerprint: what it was computed with.
        seconds: time that it took.
    """

    value: FiniteFloat | None = None
    missing: Message | None = None
    fingerprint: Fingerprint = Field(default_factory=dict)
    seconds: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _value_or_reason(self) -> MetricValue:
        if (self.value is None) == (self.missing is None):
            raise ValueError("a metric has either a value or a reason for missing")
        return self

    @property
    def short_reason(self) -> str:
        """The reason in a table's words: without addresses and paths, and what to do about it.

        Messages have these in brackets, behind a semicolon or on further lines.
        """
        return re.sub(r" \([^()]*/.*|[;\n].*", "", self.missing or "", flags=re.DOTALL)

    @classmethod
    def of(cls, value: float, fingerprint: Fingerprint, seconds: float) -> MetricValue:
        """A computed value; one that is not finite counts as missing."""
        if not math.isfinite(value):
            return cls(missing=f"the value is {value}", fingerprint=fingerprint, seconds=seconds)
        return cls(value=value, fingerprint=fingerprint, seconds=seconds)


class Record(_Frozen):
    """One finished run.

    Attributes:
        schema_version: of this layout; older ones stay readable.
        key: the run key.
        cell: identity of the run's cell (its settings, without data content and seed).
        seed: within the cell.
        settings: everything that decides the result, defaults included.
        data_digest: SHA-256 of the images and labels.
        status: ``complete``; ``diverged`` (the loss, another term of the history, the weights or
            the codes ceased to be finite); ``failed`` (an error).
        error: why it diverged or failed.
        metrics: by registered name.
        history: every loss term per finished epoch.
        n_parameters: trainable scalars; 0 if the model was not built.
        seconds: time of each stage.
        provenance: versions, hardware, precision, git commit.
        finished_at: UTC.
    """

    schema_version: Literal[1] = 1
    key: str
    cell: str
    seed: int
    settings: dict[str, Any]
    data_digest: str
    status: Status
    error: Message | None = None
    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    history: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    n_parameters: int = 0
    seconds: dict[str, FiniteFloat] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    finished_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, run: Run, **content: Any) -> Record:
        """The record of ``run``; ``content`` is what became of it."""
        return cls(
            key=run.key,
            cell=run.cell.identity,
            seed=run.seed,
            settings=run.cell.settings,
            data_digest=run.data_digest,
            **content,
        )

    @property
    def environment(self) -> dict[str, Any]:
        """The provenance without what is the run's own: what its stages cost, where it resumed."""
        own = ("stages", "resumed_after_epoch")
        return {name: value for name, value in self.provenance.items() if name not in own}


class ScoreRecord(_Frozen):
    """Metrics that were computed for a recorded run later on; the record itself is not touched.

    Attributes:
        schema_version: of this layout.
        key: the run key.
        record_sha256: of the record that the metrics belong to.
        metrics: by registered name.
        provenance: of the scoring.
        finished_at: UTC.
    """

    schema_version: Literal[1] = 1
    key: str
    record_sha256: str
    metrics: dict[str, MetricValue]
    provenance: dict[str, Any] = Field(default_factory=dict)
    finished_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class ControlRecord(_Frozen):
    """Metrics of one control: what no model has learned, scored like a model.

    Attributes:
        schema_version: of this layout.
        key: readable slug and hash of everything below up to ``latent_dim``.
        control: such as ``pca``.
        title: the name in tables.
        dataset: registered name.
        image_size: side in pixels.
        train_images: as in the training settings; what the control knows of the training images.
        data_digest: SHA-256 of the whole dataset's images and labels.
        latent_dim: L of a control that has codes; None for the others.
        comparable: whether its values may stand beside those of models; False if it counts other
            images than they do.
        metrics: by registered name.
        provenance: of the scoring.
        finished_at: UTC.
    """

    schema_version: Literal[1] = 1
    key: str
    control: str
    title: str
    dataset: str
    image_size: int
    train_images: int | None
    data_digest: str
    latent_dim: int | None
    comparable: bool
    metrics: dict[str, MetricValue]
    provenance: dict[str, Any] = Field(default_factory=dict)
    finished_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def matches(self, cell: Cell, data_digest: str) -> bool:
        """Whether it is a control of a cell's models, trained on data of that SHA-256."""
        of_cell = cell.dataset, cell.image_size, cell.training.train_images, data_digest
        own = self.dataset, self.image_size, self.train_images, self.data_digest
        return own == of_cell and self.latent_dim in (None, cell.latent_dim)
