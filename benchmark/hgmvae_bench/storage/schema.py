"""Pydantic models of the records in a results folder.

Every model is validated when a record is made and again when its file is read.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from hgmvae_bench.grid import Cell, Run
from hgmvae_bench.utils.text import shorten

Status = Literal["complete", "diverged", "failed"]
ControlName = Literal["real-halves", "real-train", "mean-image", "pixel-noise", "pca"]
Fingerprint = dict[str, str | int | FiniteFloat]

MAX_NUMBER = 1e60
"""Largest magnitude of a metric's value; statistics can still compute its fourth power."""

MAX_SHORT_ERROR = 120
"""Characters of a run's error in one line, as footnotes show it."""

Number = Annotated[FiniteFloat, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
"""Value of a metric."""

CONTROLS_WITH_CODES: frozenset[ControlName] = frozenset({"pca"})

# A key is part of file names: no separators, NUL or control characters.
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]

# An error message may hold bytes that do not decode, such as a file name's.
Message = Annotated[
    str, AfterValidator(lambda text: text.encode(errors="backslashreplace").decode())
]


# Counts fit the integers of data frames and Parquet files.
MAX_COUNT = 2**63 - 1
Count = Annotated[NonNegativeInt, Field(le=MAX_COUNT)]
PositiveCount = Annotated[PositiveInt, Field(le=MAX_COUNT)]

Seconds = Annotated[FiniteFloat, Field(ge=0, le=MAX_NUMBER)]


def _to_utc(moment: datetime) -> datetime:
    """Convert a time to UTC; its year must be representable in nanoseconds since 1970."""
    if not 1970 <= moment.year <= 2200:
        raise ValueError(f"the year is {moment.year}, expected 1970 to 2200")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_to_utc)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _View(BaseModel):
    """Typed view of the known entries of a free-form mapping; others are ignored.

    Strict, because readers use the mapping itself: text that looks like a number is none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class StageCost(_View):
    """Measured cost of one stage of a run; None where this machine cannot measure it.

    Attributes:
        seconds: wall-clock time.
        peak_bytes: peak memory of the process.
        peak_gpu_bytes: peak GPU memory that torch reserved.
        joint_seeds: number of seeds that were trained jointly. The time is this run's share; the
            peaks are those of all seeds. ``together`` on disk.
    """

    seconds: FiniteFloat | None = None
    peak_bytes: Count | None = None
    peak_gpu_bytes: Count | None = None
    joint_seeds: PositiveCount = Field(default=1, alias="together")


class CodeVersion(_View):
    """Git commit of the code, and whether the checkout had uncommitted changes."""

    commit: str
    dirty: bool


class ProvenanceView(_View):
    """Typed view of the entries of a provenance that the suite reads.

    Attributes:
        device, gpu, cpu, python: names of the hardware, and version of Python.
        packages: installed version by distribution name.
        code: git commit, if known.
        plugins: digest by file or module name; None for a module that is installed.
        gpu_bytes: total memory of the GPU; None without one.
        stages: cost by stage.
    """

    device: str | None = None
    gpu: str | None = None
    cpu: str | None = None
    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    code: CodeVersion | None = None
    plugins: dict[str, str | None] = Field(default_factory=dict)
    gpu_bytes: Count | None = None
    stages: dict[str, StageCost] = Field(default_factory=dict)


def _checked_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    ProvenanceView.model_validate(provenance)
    return provenance


Provenance = Annotated[dict[str, Any], AfterValidator(_checked_provenance)]
"""Free-form JSON; the entries of `ProvenanceView` have its types."""


class _DatasetSettings(_View):
    name: str
    image_size: PositiveCount


class _ModelSettings(_View):
    name: str


class _SettingsView(_View):
    """The entries of a cell's settings that every record has."""

    dataset: _DatasetSettings
    model: _ModelSettings
    latent_dim: PositiveCount
    network: dict[str, Any]
    training: dict[str, Any]


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    _SettingsView.model_validate(settings)
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_check_settings)]
"""Settings of a cell as `hgmvae_bench.grid.Cell.settings` returns them."""


class MetricValue(_Frozen):
    """Value of one metric with its fingerprint, or the reason why it is missing.

    Attributes:
        value: at most `MAX_NUMBER` in magnitude, or None if missing.
        missing: reason why there is no value; None if there is one.
        fingerprint: data and settings that the value was computed with.
        seconds: time to compute the value.
    """

    value: Number | None = None
    missing: Message | None = None
    fingerprint: Fingerprint = Field(default_factory=dict)
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _check_value_or_reason(self) -> Self:
        if (self.value is None) == (self.missing is None):
            raise ValueError("a metric has either a value or a reason for missing")
        return self

    @property
    def short_reason(self) -> str:
        """The reason for a table: without URLs and paths, and without the advice.

        Messages put these in parentheses, after a semicolon or on further lines.
        """
        return re.sub(r" \([^()]*/.*|[;\n].*", "", self.missing or "", flags=re.DOTALL)

    @classmethod
    def of(cls, value: float, fingerprint: Fingerprint, seconds: float) -> MetricValue:
        """Computed value; one that is infinite, NaN or too large is recorded as missing."""
        if not (math.isfinite(value) and abs(value) <= MAX_NUMBER):
            return cls(missing=f"the value is {value}", fingerprint=fingerprint, seconds=seconds)
        return cls(value=value, fingerprint=fingerprint, seconds=seconds)


class Record(_Frozen):
    """Result of one run.

    Attributes:
        schema_version: version of this schema; records of older versions stay readable.
        key: the run key.
        cell: identity of the run's cell (its settings, without data content and seed).
        seed: number of the run within the cell.
        settings: everything that decides the result, defaults included.
        data_digest: SHA-256 of the images, labels and factors.
        status: ``complete``; ``diverged`` if the loss, another term of the history, the weights or
            the codes became non-finite; ``failed`` after an error.
        error: reason why the run diverged or failed; None if it is complete.
        metrics: values by registered name.
        history: every loss term per finished epoch.
        n_parameters: trainable scalars; 0 if the model was not built.
        seconds: time of each stage.
        provenance: versions, hardware, git commit, and the costs of the stages.
        finished_at: time of completion, in UTC.
    """

    schema_version: Literal[1] = 1
    key: Key
    cell: str
    seed: Count
    settings: Settings
    data_digest: str
    status: Status
    error: Message | None = None
    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    history: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    n_parameters: Count = 0
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    provenance: Provenance = Field(default_factory=dict)
    finished_at: Moment = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of(cls, run: Run, **content: Any) -> Record:
        """Record of ``run``; ``content`` gives the remaining fields."""
        return cls(
            key=run.key,
            cell=run.cell.identity,
            seed=run.seed,
            settings=run.cell.settings,
            data_digest=run.data_digest,
            **content,
        )

    @property
    def short_error(self) -> str:
        """Reason of a diverged or failed run in one line, cut to `MAX_SHORT_ERROR`.

        That is the exception of a traceback, with all lines of its message, or else the last line.
        """
        lines = (self.error or "").strip().splitlines() or ["no reason recorded"]
        start = len(lines) - 1
        if lines[0].startswith("Traceback "):
            frames = [i for i, line in enumerate(lines) if line.startswith("  File ")]
            after = range(max(frames, default=0) + 1, len(lines))
            start = next((i for i in after if not lines[i].startswith(" ")), start)
        return shorten(" ".join(" ".join(lines[start:]).split()), MAX_SHORT_ERROR)

    @property
    def stage_costs(self) -> dict[str, StageCost]:
        """Measured cost of each stage; empty if none was recorded."""
        return ProvenanceView.model_validate(self.provenance).stages

    @property
    def gpu_bytes(self) -> int | None:
        """Total memory of the GPU that the run used; None without one."""
        return ProvenanceView.model_validate(self.provenance).gpu_bytes

    @property
    def hardware(self) -> str:
        """Name of the GPU that the run used, without one that of the CPU."""
        gpu, cpu = self.provenance.get("gpu"), self.provenance.get("cpu")
        return str(gpu or cpu or "unknown hardware")

    @property
    def environment(self) -> dict[str, Any]:
        """Provenance without the entries that differ from run to run."""
        own = ("stages", "resumed_after_epoch")
        return {name: value for name, value in self.provenance.items() if name not in own}


class ScoreRecord(_Frozen):
    """Metrics that were added to a recorded run; the record itself stays unchanged.

    Attributes:
        schema_version: version of this schema.
        key: the run key.
        record_sha256: SHA-256 of the record that the metrics belong to.
        metrics: values by registered name.
        provenance: provenance of the scoring.
        finished_at: time of completion, in UTC.
    """

    schema_version: Literal[1] = 1
    key: Key
    record_sha256: str
    metrics: dict[str, MetricValue]
    provenance: Provenance = Field(default_factory=dict)
    finished_at: Moment = Field(default_factory=lambda: datetime.now(UTC))


class ControlRecord(_Frozen):
    """Metrics of one control: a reference without a trained model, scored like a model.

    Attributes:
        schema_version: version of this schema.
        key: ``<dataset>_<control>[_L<latent_dim>]_<hash>``; the hash covers everything below up to
            ``latent_dim``.
        control: name of the control.
        title: the name in tables.
        dataset: registered name.
        image_size: side in pixels.
        train_images: number of training images that the control uses; None for all.
        data_digest: SHA-256 of the whole dataset's images, labels and factors.
        latent_dim: L of a control that has codes; None for the others.
        comparable: whether its values are comparable with those of models; False if it is computed
            on other images.
        metrics: values by registered name.
        provenance: provenance of the scoring.
        finished_at: time of completion, in UTC.
    """

    schema_version: Literal[1] = 1
    key: Key
    control: ControlName
    title: str
    dataset: str
    image_size: PositiveCount
    train_images: PositiveCount | None
    data_digest: str
    latent_dim: PositiveCount | None
    comparable: bool
    metrics: dict[str, MetricValue]
    provenance: Provenance = Field(default_factory=dict)
    finished_at: Moment = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _check_control_and_key(self) -> Self:
        if (self.latent_dim is not None) != (self.control in CONTROLS_WITH_CODES):
            raise ValueError(f"latent_dim {self.latent_dim} is invalid for {self.control}")
        dims = "" if self.latent_dim is None else f"_L{self.latent_dim}"
        if not self.key.rpartition("_")[0].endswith(f"_{self.control}{dims}"):
            raise ValueError(f"the key {self.key} is not one of the control {self.control}{dims}")
        return self

    @property
    def label(self) -> str:
        """Readable name of the control, such as ``digits, PCA, L = 4``."""
        dims = "" if self.latent_dim is None else f", L = {self.latent_dim}"
        return f"{self.dataset}, {self.title}{dims}"

    def matches(self, cell: Cell, data_digest: str) -> bool:
        """Whether the control has the images and the latent dim of a cell's models."""
        of_cell = cell.dataset, cell.image_size, cell.training.train_images, data_digest
        own = self.dataset, self.image_size, self.train_images, self.data_digest
        return own == of_cell and self.latent_dim in (None, cell.latent_dim)
