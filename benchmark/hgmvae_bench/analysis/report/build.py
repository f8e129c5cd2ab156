"""Assembly of a report's page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hgmvae_bench.analysis.claims import CLUSTERING
from hgmvae_bench.analysis.figures.catalogue import FigureInput
from hgmvae_bench.analysis.figures.source import FigureSource
from hgmvae_bench.analysis.folder_comparison import compare_folders
from hgmvae_bench.analysis.report import findings, provenance, runs
from hgmvae_bench.analysis.report.figures import heatmap, page_figures
from hgmvae_bench.analysis.report.layout import (
    PageTable,
    page_table,
    repeated_labels,
    show_legends_once,
)
from hgmvae_bench.analysis.tables import Table, build_table, with_recorded_metrics
from hgmvae_bench.grid import TableSpec
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.utils.text import escape_controls

ALL_INPUTS: tuple[FigureInput, ...] = ("records", "codes", "models")

OWN_CLUSTERS = ("own-accuracy", "own-purity", "own-nmi", "own-ari")

RANKS = {1: "best", 2: "second", 3: "third"}


def build_report(
    source: FigureSource,
    *,
    figures: Collection[FigureInput] = ALL_INPUTS,
    against: Path | None = None,
) -> str:
    """Build the report of a grid's results as HTML.

    Args:
        source: results of one grid.
        figures: inputs of the figures to draw; empty means no figures. Figures of models and codes
            show one latent dim of each dataset, the one with most trained models (the largest of
            several). Traversals and manifolds show the model with the best mean rank there.
        against: another results folder to compare with; None for no such section.

    Raises:
        FolderComparisonError: if ``against`` has no cell in common with the results.
        StoreError: if no run of the grid is recorded.
    """
    _check_recorded(source)
    controls = source.store.controls(on_invalid="warn").values()
    tables = [
        build_table(source.grid, spec, source.runs.values(), controls)
        for spec in _with_own_clusters(source)
    ]
    content = {
        **_results(source, tables),
        **_details(source),
        "against": None if against is None else _against(against, source),
        "heatmap": heatmap(source) if "records" in figures else None,
        "figures": list(page_figures(source, tables, figures)),
    }
    return _render({**content, "sections": _sections(content)})


def _with_own_clusters(source: FigureSource) -> list[TableSpec]:
    """The grid's tables; those of clustering have rows for the own clusters that are recorded.

    A grid with own clusters in a table of its own needs no further rows.
    """
    specs = source.grid.spec.tables
    known = {metric for spec in specs for metric in spec.metrics}
    others = [metric for metric in OWN_CLUSTERS if metric not in known]
    return [
        with_recorded_metrics(source.grid, spec, source.runs.values(), others)
        if set(CLUSTERING).intersection(spec.metrics)
        else spec
        for spec in specs
    ]


def _against(folder: Path, source: FigureSource) -> PageTable:
    """Comparison of another results folder with the results."""
    table = compare_folders(folder, source.store.root).table
    return page_table(table, prose=True)


def _check_recorded(source: FigureSource) -> None:
    """Raise `StoreError` if no run of the grid is recorded."""
    if any(source.runs_of(names) for names in source.cells):
        return
    root, n_others = source.store.root, len(source.runs)
    others = f" (its {n_others} have other settings or other defaults)" if n_others else ""
    raise StoreError(
        f"no run of the grid {source.grid.spec.name} is recorded in {root}{others}; train some "
        f"with `hgmvae-bench run --results {root}`"
    )


def _results(source: FigureSource, tables: list[Table]) -> dict[str, Any]:
    """Findings and tables."""
    grid = source.grid
    comparisons = findings.comparisons(grid, tables)
    return {
        "title": grid.spec.title,
        "subtitle": f"Grid {grid.spec.name}, reported by hgmvae-bench {version('hgmvae-bench')}",
        "datasets": list(
            dict.fromkeys(grid.dataset_title(names.dataset) for names in source.cells)
        ),
        "models": [grid.model_title(model) for model in source.models],
        "counts": runs.count_runs(source),
        "claims": findings.claims(grid, tables),
        "best": findings.best_models(grid, tables),
        "tables": show_legends_once(
            page_table(table.formatted, controls=table.control_titles) for table in tables
        ),
        "has_controls": any(table.control_titles for table in tables),
        "comparisons": show_legends_once(comparisons),
    }


def _details(source: FigureSource) -> dict[str, Any]:
    """Runs, costs and provenance."""
    environments, environment_of = provenance.environments(source)
    return {
        "unsuccessful": runs.unsuccessful_runs(source),
        "missing": runs.missing_runs(source),
        "costs": runs.costs(source),
        "cells": runs.cells(source, environment_of),
        "commands": provenance.commands(source),
        "grid": source.grid.text,
        "protocol": provenance.protocol(source),
        "environments": environments,
    }


def _sections(content: dict[str, Any]) -> dict[str, str]:
    """Titles of the page's sections by id."""
    return {
        "findings": "Findings",
        "tables": "Tables",
        **({"paper": "Comparison with the paper"} if content["comparisons"] else {}),
        **({"against": "Comparison with other results"} if content["against"] else {}),
        **({"figures": "Figures"} if content["figures"] else {}),
        "incomplete": "Failed and missing runs",
        "fairness": "Costs and convergence",
        "runs": "Runs",
        "reproduce": "How to reproduce",
        "provenance": "Provenance",
    }


def _render(content: dict[str, Any]) -> str:
    css, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        # Error messages and other people's names may contain terminal escapes.
        finalize=lambda value: (
            escape_controls(value, keep="\n\t")
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )
    return environment.from_string(_asset("page.html.j2")).render(
        policy=_policy(css, script),
        # The suite's own files, without any value of the results.
        css=Markup(css),  # noqa: S704
        script=Markup(script),  # noqa: S704
        ranks=RANKS,
        repeated_labels=repeated_labels,
        **content,
    )


def _policy(css: str, script: str) -> str:
    """Content-Security-Policy: the page's own style and script, embedded images, nothing else."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; "
        f"script-src 'sha256-{script_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("hgmvae_bench.analysis.report") / name).read_text(encoding="utf-8")
