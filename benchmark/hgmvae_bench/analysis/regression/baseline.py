"""Baselines: files with a grid's distribution over seeds, which later runs are compared with.

A baseline has the *measures* of each run: every metric, and the mean of every loss term over the
last epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from hgmvae_bench.grid import Cell, Grid, Run, different_settings
from hgmvae_bench.grid.cells import identity_of
from hgmvae_bench.grid.spec import FileName
from hgmvae_bench.storage.schema import MAX_NUMBER, Fingerprint, Number, Settings
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.atomic_files import write_output
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.seeding import digest
from hgmvae_bench.utils.text import escape_controls, first_few, hidden_characters, quote, shorten

LOSS_TERM = "final {}"
"""Name of the measure for a loss term's mean over the last epoch."""


class BaselineError(UserError, RuntimeError):
    """A baseline that cannot be read, made or compared with; the message says what to do."""


MAX_BASELINE_BYTES = 256 * 2**20
"""Maximum size of a baseline file; 10,000 cells of ten seeds need about 100 MB."""


def _refuse_hidden(text: str) -> str:
    if hidden_characters(text):
        raise ValueError(f"invisible characters in {quote(text)}")
    return text


# Names are printed to terminals and logs.
_Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_refuse_hidden)]


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineCell(_StrictModel):
    """A cell's distribution over seeds.

    Attributes:
        name: readable name, for messages.
        identity: identity of the cell.
        settings: everything that determines the results, except the data's content and the seed.
        data_digest: SHA-256 of the images, labels and factors.
        seeds: seeds of the runs.
        measures: values by name of the measure, one per seed.
        fingerprints: fingerprints of the metrics among the measures.
    """

    name: _Name
    identity: str
    settings: Settings
    data_digest: str
    seeds: list[NonNegativeInt] = Field(min_length=2)
    measures: dict[_Name, list[Number]]
    fingerprints: dict[_Name, Fingerprint]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.identity != identity_of(self.settings):
            raise ValueError(f"the identity {quote(self.identity)} is not that of the settings")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed occurs twice: {quote(self.seeds)}")
        for name, values in self.measures.items():
            if len(values) != len(self.seeds):
                raise ValueError(f"{name} has {len(values)} values, not {len(self.seeds)}")
        if unmatched := self.fingerprints.keys() - self.measures.keys():
            raise ValueError(f"fingerprints without values: {', '.join(sorted(unmatched))}")
        return self


class Baseline(_StrictModel):
    """Measures of a grid's runs that later runs are compared with.

    Attributes:
        schema_version: version of this file layout.
        grid: name of the grid.
        made_at: time of creation, in UTC.
        provenance: every distinct provenance of the runs: versions, hardware, git commit.
        cells: in the grid's order.
    """

    schema_version: Literal[1] = 1
    grid: FileName
    made_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    provenance: list[dict[str, Any]]
    cells: list[BaselineCell] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        first = self.cells[0]
        if len({cell.identity for cell in self.cells}) < len(self.cells):
            raise ValueError("a cell occurs twice")
        if other := next((cell for cell in self.cells if cell.seeds != first.seeds), None):
            raise ValueError(
                f"{other.name} has the seeds {quote(other.seeds)}, "
                f"{first.name} has {quote(first.seeds)}"
            )
        return self

    def in_precision(self, precision: str) -> Baseline:
        """Return the baseline with the cells' identities in another number format.

        Runs in that format can then be compared with these values, to see whether the format
        shifts any of them.
        """
        cells = []
        for cell in self.cells:
            training = {**cell.settings["training"], "precision": precision}
            settings = {**cell.settings, "training": training}
            changes = {"settings": settings, "identity": identity_of(settings)}
            cells.append(cell.model_copy(update=changes))
        return self.model_copy(update={"cells": cells})


def load_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        BaselineError: if the file does not exist, is too large, damaged or edited, or has another
            schema version.
    """
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_BASELINE_BYTES + 1)
    except OSError as error:
        raise BaselineError(
            f"{path}: cannot be read: {error.strerror}; a baseline is written with --update"
        ) from error
    if len(raw) > MAX_BASELINE_BYTES:
        raise BaselineError(
            f"{path}: too large for a baseline (over {MAX_BASELINE_BYTES >> 20} MB); "
            "write it again with --update"
        )
    try:
        file = json.loads(raw)
        sha256, content = file["sha256"], file["content"]
        intact = digest(content) == sha256
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BaselineError(
            f"{path}: damaged, or not a baseline; write it again with --update"
        ) from error
    if not intact:
        raise BaselineError(
            f"{path}: damaged or edited (its content does not match its hash); "
            "write it again with --update"
        )
    try:
        # Strict validation refuses text in place of numbers. It accepts dates only from JSON.
        return Baseline.model_validate_json(json.dumps(content), strict=True)
    except (ValidationError, RecursionError) as error:
        raise BaselineError(
            f"{path}: not a baseline that this version reads: {_first_problem(error)}; "
            "write it again with --update"
        ) from error


def _first_problem(error: ValidationError | RecursionError) -> str:
    """Place and message of the first problem of a baseline's content."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{shorten(escape_controls(place))}: {first['msg']}"


def save_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline, completely or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    content = baseline.model_dump(mode="json")
    text = json.dumps({"sha256": digest(content), "content": content}, indent=1, ensure_ascii=False)
    write_output(path, f"{text}\n".encode())


@dataclass(frozen=True)
class RunMeasures:
    """The measures of one run.

    Attributes:
        values: measures by name.
        fingerprints: fingerprints of the metrics among them.
        missing: one line if the run is not complete, otherwise one for each metric without a value.
    """

    values: dict[str, float] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def run_measures(run: Run, metrics: Iterable[str], stored: Mapping[str, StoredRun]) -> RunMeasures:
    """Read a run's measures from its record.

    Args:
        run: the run.
        metrics: metrics that the grid asks for.
        stored: recorded runs by run key.
    """
    known = stored.get(run.key)
    if known is None:
        return RunMeasures(missing=["not run"])
    record = known.record
    if record.status != "complete":
        return RunMeasures(missing=[f"{record.status}: {record.short_error}"])
    measured = RunMeasures()
    for term, means in record.history.items():
        if means and abs(means[-1]) <= MAX_NUMBER:
            measured.values[LOSS_TERM.format(term)] = means[-1]
        else:
            last = quote(means[-1]) if means else "no epoch"
            measured.missing.append(f"{LOSS_TERM.format(term)} is missing: {last}")
    for name in metrics:
        recorded = known.metrics.get(name)
        if recorded is None or recorded.value is None:
            reason = "not scored" if recorded is None else recorded.missing or ""
            measured.missing.append(f"{name} is missing: {reason}")
        else:
            measured.values[name] = recorded.value
            measured.fingerprints[name] = recorded.fingerprint
    return measured


def make_baseline(grid: Grid, runs: Iterable[Run], stored: Mapping[str, StoredRun]) -> Baseline:
    """Make a baseline from runs of a grid.

    Raises:
        BaselineError: if a run is not complete, a metric has no value, values of one metric have
            different fingerprints, or there are fewer than two seeds.
    """
    cells = []
    provenance: dict[str, dict[str, Any]] = {}
    for (cell, name), of_cell in group_by_cell(runs).items():
        measured = {run.seed: run_measures(run, grid.cells[cell], stored) for run in of_cell}
        missing = [f"{name}, seed {s}: {line}" for s, m in measured.items() for line in m.missing]
        if missing:
            raise BaselineError("a baseline needs every value:\n" + _lines(missing))
        if len(measured) < 2:
            raise BaselineError("a baseline needs at least 2 seeds, better 10 (--seeds 10)")
        first, *others = measured.values()
        for other in others:
            require_same_fingerprints(name, first.fingerprints, other.fingerprints)
        cells.append(
            BaselineCell(
                name=name,
                identity=cell.identity,
                settings=cell.settings,
                data_digest=of_cell[0].data_digest,
                seeds=list(measured),
                measures={m: [each.values[m] for each in measured.values()] for m in first.values},
                fingerprints=first.fingerprints,
            )
        )
        for run in of_cell:
            environment = stored[run.key].record.environment
            provenance[digest(environment)] = environment
    return Baseline(grid=grid.spec.name, provenance=list(provenance.values()), cells=cells)


def require_same_setup(baseline: Baseline, grid: Grid, runs: Iterable[Run]) -> None:
    """Check that runs of a grid can be compared with a baseline, before they are trained.

    The runs may be those of a part of the grid.

    Raises:
        BaselineError: if the grid, its cells, their settings, metrics or data differ from those of
            the baseline; the message has one line per difference.
    """
    if baseline.grid != grid.spec.name:
        raise BaselineError(
            f"the baseline belongs to the grid {baseline.grid}, not to {grid.spec.name}; "
            "name another file with --baseline"
        )
    known = {cell.identity: cell for cell in baseline.cells}
    differences: list[str] = []
    for (cell, name), of_cell in group_by_cell(runs).items():
        old = known.get(cell.identity)
        if old is None:
            differences += _changed_settings(baseline, cell, name)
            continue
        wanted, kept = set(grid.cells[cell]), set(old.fingerprints)
        differences += [f"{name}: {metric} is new" for metric in sorted(wanted - kept)]
        differences += [
            f"{name}: {metric} is no longer requested" for metric in sorted(kept - wanted)
        ]
        if old.data_digest != of_cell[0].data_digest:
            differences.append(f"{name}: the content of {cell.dataset} has changed")
    in_grid = {cell.identity for cell in replace(grid, spec=grid.full_spec).cells}
    if not differences:
        removed = [cell.name for cell in baseline.cells if cell.identity not in in_grid]
        differences += [f"{name}: no longer in the grid" for name in removed]
    if differences:
        raise BaselineError(
            f"grid {grid.spec.name} differs from its baseline:\n{_lines(differences)}\n"
            "if that is intended, write the baseline again with --update"
        )


def require_same_fingerprints(
    cell: str, old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]
) -> None:
    """Check that the fingerprints of metrics agree, where both sides have a value.

    Raises:
        BaselineError: if one differs; the message names the metric.
    """
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            before, now = _only_different(old[name], new[name])
            raise BaselineError(
                f"{cell}: values of {name} cannot be compared: computed with {quote(before)} "
                f"and with {quote(now)}; if that is intended, write the baseline again with "
                "--update from an empty results folder"
            )


def group_by_cell(runs: Iterable[Run]) -> dict[tuple[Cell, str], list[Run]]:
    """Group runs by cell, with a readable name that distinguishes variants of one model."""
    groups: dict[Cell, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    slugs = Counter(cell.slug for cell in groups)
    return {
        (cell, cell.slug if slugs[cell.slug] == 1 else f"{cell.slug} ({cell.identity})"): group
        for cell, group in groups.items()
    }


def _only_different(old: Fingerprint, new: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Entries of either fingerprint that the other does not have."""
    return dict(old.items() - new.items()), dict(new.items() - old.items())


def _changed_settings(baseline: Baseline, cell: Cell, name: str) -> Iterator[str]:
    """Differences between a cell and the baseline's cell of the same name, one line each."""
    same_name = [old for old in baseline.cells if old.name == name]
    if not same_name:
        yield f"{name}: not in the baseline"
        return
    for difference in different_settings(same_name[0].settings, cell.settings):
        key, before, now = (shorten(escape_controls(str(each))) for each in difference)
        yield f"{name}: {key} was {before}, is {now}"


def _lines(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in first_few(lines, limit=10))
