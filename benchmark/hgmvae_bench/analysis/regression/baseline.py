"""Baselines: a grid's distribution over seeds, kept in a file to hold later runs against.

What is kept of a run are its *measures*: every metric, and every loss term's mean over the last
epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from hgmvae_bench.grid import Cell, Grid, Run, flatten
from hgmvae_bench.grid.cells import identity_of
from hgmvae_bench.storage.schema import Fingerprint
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.atomic_files import write_atomically
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.seeding import digest

LOSS_TERM = "final {}"
"""Name of the measure that a loss term's mean over the last epoch is."""


class BaselineError(UserError, RuntimeError):
    """A baseline that cannot be read, made, or compared with; the message says what to do."""


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineCell(_StrictModel):
    """A cell's distribution over seeds.

    Attributes:
        name: readable, for messages.
        identity: the cell's.
        settings: everything that decides the results, apart from the data's content and the seed.
        data_digest: SHA-256 of the images and labels.
        seeds: of the runs behind the values.
        measures: by name, a value for each seed.
        fingerprints: what the metrics among the measures were computed with.
    """

    name: str
    identity: str
    settings: dict[str, Any]
    data_digest: str
    seeds: list[int] = Field(min_length=2)
    measures: dict[str, list[FiniteFloat]]
    fingerprints: dict[str, Fingerprint]

    @model_validator(mode="after")
    def _check_seeds_and_names(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed stands twice: {self.seeds}")
        for name, values in self.measures.items():
            if len(values) != len(self.seeds):
                raise ValueError(f"{name} has {len(values)} values, not {len(self.seeds)}")
        if strangers := self.fingerprints.keys() - self.measures.keys():
            raise ValueError(f"fingerprints without values: {', '.join(sorted(strangers))}")
        return self


class Baseline(_StrictModel):
    """What a grid's runs gave when they were last found good.

    Attributes:
        schema_version: of this layout.
        grid: the grid's name.
        made_at: UTC.
        provenance: of the runs, each that occurs: versions, hardware, git commit.
        cells: in the grid's order.
    """

    schema_version: Literal[1] = 1
    grid: str
    made_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    provenance: list[dict[str, Any]]
    cells: list[BaselineCell] = Field(min_length=1)

    def in_precision(self, precision: str) -> Baseline:
        """The same values in the place of cells trained in another number format.

        Runs in that format can then be held against them, to see whether it shifts any.
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
        BaselineError: if there is none, or it is damaged, edited, or of another schema version.
    """
    try:
        file = json.loads(path.read_bytes())
        sha256, content = file["sha256"], file["content"]
        intact = digest(content) == sha256
    except OSError as error:
        raise BaselineError(
            f"{path}: cannot be read: {error.strerror}; a baseline is written with --update"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BaselineError(
            f"{path}: damaged, or not a baseline; write it anew with --update"
        ) from error
    if not intact:
        raise BaselineError(
            f"{path}: damaged or edited (its content does not match its hash); "
            "write it anew with --update"
        )
    try:
        return Baseline.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BaselineError(
            f"{path}: not a baseline that this version reads: {where}: {fault['msg']}; "
            "write it anew with --update"
        ) from error


def save_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline, whole or not at all.

    Raises:
        BaselineError: if it cannot be written.
    """
    content = baseline.model_dump(mode="json")
    text = json.dumps({"sha256": digest(content), "content": content}, indent=1, ensure_ascii=False)
    try:
        write_atomically(path, f"{text}\n".encode())
    except OSError as error:
        raise BaselineError(f"{path}: cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class RunMeasures:
    """The measures of one run.

    Attributes:
        values: by name.
        fingerprints: of the metrics among them.
        missing: a line for the run if it is not complete, or for each metric without a value.
    """

    values: dict[str, float] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def run_measures(run: Run, metrics: Iterable[str], stored: Mapping[str, StoredRun]) -> RunMeasures:
    """Take a run's measures from its record.

    Args:
        run: the run.
        metrics: what the grid asks for.
        stored: what a results folder has, by run key.
    """
    known = stored.get(run.key)
    if known is None:
        return RunMeasures(missing=["not run"])
    record = known.record
    if record.status != "complete":
        reason = (record.error or "no reason given").strip().splitlines()[-1]
        return RunMeasures(missing=[f"{record.status}: {reason}"])
    measured = RunMeasures(
        {LOSS_TERM.format(term): means[-1] for term, means in record.history.items()}
    )
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
    """The distribution over seeds of runs of a grid.

    Raises:
        BaselineError: if a run is not complete, a metric has no value, values of one metric were
            computed with different things, or there are fewer than two seeds.
    """
    cells = []
    provenance: dict[str, dict[str, Any]] = {}
    for (cell, name), of_cell in group_by_cell(runs).items():
        measured = {run.seed: run_measures(run, grid.cells[cell], stored) for run in of_cell}
        faults = [f"{name}, seed {s}: {fault}" for s, m in measured.items() for fault in m.missing]
        if faults:
            raise BaselineError("a baseline needs every value:\n" + _lines(faults))
        if len(measured) < 2:
            raise BaselineError("a baseline needs seeds: at least 2, better 10 (--seeds 10)")
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
            of_run = stored[run.key].record.environment
            provenance[digest(of_run)] = of_run
    return Baseline(grid=grid.spec.name, provenance=list(provenance.values()), cells=cells)


def require_same_setup(baseline: Baseline, grid: Grid, runs: Iterable[Run]) -> None:
    """See that runs of a grid can be held against a baseline, before they are trained.

    A part of the grid fits a baseline of the whole.

    Raises:
        BaselineError: if the grid, its cells, their settings, metrics or data are not those of the
            baseline; one line for each difference.
    """
    if baseline.grid != grid.spec.name:
        raise BaselineError(
            f"the baseline is of grid {baseline.grid}, not of {grid.spec.name}; "
            "give another file with --baseline"
        )
    known = {cell.identity: cell for cell in baseline.cells}
    faults: list[str] = []
    for (cell, name), of_cell in group_by_cell(runs).items():
        old = known.get(cell.identity)
        if old is None:
            faults += _other_settings(baseline, cell, name)
            continue
        asked, kept = set(grid.cells[cell]), set(old.fingerprints)
        for change, metrics in (("asked for", asked - kept), ("no longer asked for", kept - asked)):
            faults += [f"{name}: {metric} is {change}" for metric in sorted(metrics)]
        if old.data_digest != of_cell[0].data_digest:
            faults.append(f"{name}: the content of {cell.dataset} is another")
    wanted = {cell.identity for cell in replace(grid, spec=grid.full_spec).cells}
    if not faults:
        gone = [cell.name for cell in baseline.cells if cell.identity not in wanted]
        faults += [f"{name}: no longer in the grid" for name in gone]
    if faults:
        raise BaselineError(
            f"grid {grid.spec.name} is not what its baseline was made with:\n{_lines(faults)}\n"
            "if that is meant, write the baseline anew with --update"
        )


def require_same_fingerprints(
    cell: str, old: Mapping[str, Fingerprint], new: Mapping[str, Fingerprint]
) -> None:
    """See that metrics were computed with the same things, wherever both sides have a value.

    Raises:
        BaselineError: if one was not; the message names it.
    """
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            raise BaselineError(
                f"{cell}: values of {name} cannot be compared: computed with {old[name]} "
                f"and with {new[name]}; if that is meant, write the baseline anew with --update "
                "from a fresh results folder"
            )


def group_by_cell(runs: Iterable[Run]) -> dict[tuple[Cell, str], list[Run]]:
    """Runs by their cell and its readable name, which tells variants of one model apart."""
    groups: dict[Cell, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    alike = Counter(cell.slug for cell in groups)
    return {
        (cell, cell.slug if alike[cell.slug] == 1 else f"{cell.slug} ({cell.identity})"): group
        for cell, group in groups.items()
    }


def _other_settings(baseline: Baseline, cell: Cell, name: str) -> Iterator[str]:
    """How a cell differs from the baseline's of the same name."""
    namesakes = [old for old in baseline.cells if old.name == name]
    if not namesakes:
        yield f"{name}: not in the baseline"
        return
    old, new = (flatten(settings) for settings in (namesakes[0].settings, cell.settings))
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if before != now:
            yield f"{name}: {key} was {before}, is {now}"


def _lines(faults: list[str], shown: int = 10) -> str:
    more = [f"and {len(faults) - shown} more"] if len(faults) > shown else []
    return "\n".join(f"  {fault}" for fault in [*faults[:shown], *more])
