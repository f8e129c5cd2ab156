"""Provenance in a report: protocol, data, environments, and commands that reproduce it."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from dataclasses import dataclass

from hgmvae_bench.analysis.figures.source import FigureSource
from hgmvae_bench.analysis.report.runs import Facts, format_value, recorded_runs
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import pluralize


@dataclass(frozen=True)
class Environment:
    """Machine and software of some runs.

    Attributes:
        title: hardware and number of runs.
        facts: recorded provenance.
    """

    title: str
    facts: Facts


def protocol(source: FigureSource) -> Facts:
    """Settings that all cells share, total time, dates and data."""
    runs = list(recorded_runs(source))
    spec = source.grid.spec
    finished = sorted(run.record.finished_at for run in runs)
    hours = sum(sum(run.record.seconds.values()) for run in runs) / 3600
    data = {run.record.settings["dataset"]["name"]: run.record.data_digest for run in runs}
    return {
        "Cells": f"{len(source.grid.cells)}, {pluralize(spec.seeds, 'seed')} each",
        "Network": format_value(spec.network.model_dump()),
        "Training": format_value(spec.training.model_dump()),
        "Time": f"{hours:.2f} hours, summed over runs",
        "Finished": " to ".join(dict.fromkeys(f"{finished[i]:%Y-%m-%d}" for i in (0, -1))),
        **{f"Data: {name}": f"SHA-256 {digest}" for name, digest in data.items()},
    }


def environments(source: FigureSource) -> tuple[list[Environment], dict[str, int]]:
    """Distinct environments, and the number of the environment (from 1) by run key."""
    runs_by_environment: dict[str, list[StoredRun]] = defaultdict(list)
    for run in recorded_runs(source):
        key = json.dumps(run.record.environment, sort_keys=True)
        runs_by_environment[key].append(run)
    environments = []
    numbers: dict[str, int] = {}
    for number, runs in enumerate(runs_by_environment.values(), start=1):
        numbers |= {run.record.key: number for run in runs}
        recorded = runs[0].record.environment
        facts = {name: format_value(value) for name, value in recorded.items()}
        if code := recorded.get("code"):
            changes = ", with uncommitted changes" if code["dirty"] else ""
            facts["code"] = f"commit {code['commit']}{changes}"
        title = f"{runs[0].record.hardware}, {pluralize(len(runs), 'run')}"
        environments.append(Environment(title, facts))
    return environments, numbers


def commands(source: FigureSource) -> str:
    """Commands that repeat the runs and the report with the same plug-ins."""
    used = [run.record.provenance.get("plugins", {}) for run in recorded_runs(source)]
    names = dict.fromkeys(name for plugins in used for name in plugins)
    options = "".join(f" --plugin {shlex.quote(name)}" for name in names)
    return (
        f"hgmvae-bench run --grid grid.yaml --results results{options}\n"
        f"hgmvae-bench report --results results --output report.html{options}"
    )
