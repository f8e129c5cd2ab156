"""The report: one HTML file that says what a results folder holds.

It opens from disk and asks for nothing from anywhere: style, script and pictures stand in the
file, and its Content-Security-Policy allows these alone. Everything is escaped by the template.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from statistics import fmean
from typing import Any

import jinja2
from markupsafe import Markup

from hgmvae_bench.analysis import claim_tests, comparison
from hgmvae_bench.analysis.figures import FIGURES, FigureSource
from hgmvae_bench.analysis.figures.catalogue import FigureInput, FigureKind
from hgmvae_bench.analysis.figures.source import FigureError, ScopeAxis
from hgmvae_bench.analysis.report import content
from hgmvae_bench.analysis.tables import Table, build_table
from hgmvae_bench.grid import Grid
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.utils.errors import UserError

ALL_INPUTS: tuple[FigureInput, ...] = ("records", "codes", "models")

RANKS = {1: "best", 2: "second", 3: "third"}

IMAGE_DPI = 150
"""Of pictures of images, whose pixels are coarser than that."""


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page, or why there is none.

    Attributes:
        image: a data URI; empty if it could not be drawn.
        dataset: its title, for the filter; empty if it shows several.
    """

    title: str
    alt: str = ""
    image: str = ""
    dataset: str = ""
    lacking: str = ""


def build_report(source: FigureSource, *, figures: Collection[FigureInput] = ALL_INPUTS) -> str:
    """The report on a grid's results as HTML.

    Args:
        source: of one grid.
        figures: draw those that are made from these sources. Pictures of models and codes are of
            one latent dimension for each dataset, the one with most trained models (of several
            the greatest); traversals and manifolds are of the model with the best mean rank there.

    Raises:
        StoreError: if none of the grid's runs is recorded.
        TableError: if values that cannot be compared would stand in a table.
    """
    if not any(source.runs_of(names) for names in source.cells):
        other = len(source.runs)
        raise StoreError(
            f"no run of the grid {source.grid.spec.name} is recorded in {source.store.root}"
            + (f" (it has {other} of other settings or other defaults)" if other else "")
            + f"; do some with `hgmvae-bench run --results {source.store.root}`"
        )
    grid = source.grid
    controls = source.store.controls(on_invalid="warn").values()
    tables = [build_table(grid, spec, source.runs.values(), controls) for spec in grid.spec.tables]
    against = _against_the_paper(grid, tables)
    environments, environment_of = content.environments(source)
    css, script = _asset("page.css"), _asset("page.js")
    sections = {
        "run": "What was run",
        "tables": "Tables",
        **({"paper": "Against the paper"} if against else {}),
        **({"figures": "Figures"} if figures else {}),
        "lacking": "Diverged, failed and missing runs",
        "fairness": "Fairness",
        "runs": "Runs",
        "again": "How to reproduce",
    }
    # Escaping is on whatever the template is called: names come from plug-ins and grid files.
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_asset("page.html.j2")).render(
        policy=_policy(css, script),
        # Style and script are the suite's own files, and nothing is put into them.
        css=Markup(css),  # noqa: S704
        script=Markup(script),  # noqa: S704
        title=grid.spec.title,
        subtitle=f"Grid {grid.spec.name}, reported by hgmvae-bench {version('hgmvae-bench')}",
        sections=sections,
        datasets=list(dict.fromkeys(grid.dataset_title(names.dataset) for names in source.cells)),
        models=[source.grid.model_title(model) for model in source.models],
        counts=content.counts(source),
        protocol=content.protocol(source),
        environments=environments,
        tables=[
            content.page_table(table.formatted, controls=table.control_titles) for table in tables
        ],
        controls=any(table.control_titles for table in tables),
        against=against,
        ranks=RANKS,
        figures=list(_figures(source, tables, figures)),
        unsuccessful=content.unsuccessful(source),
        fairness=content.fairness(source),
        cells=content.cells(source, environment_of),
        commands=content.commands(source),
        grid=grid.text,
    )


def _against_the_paper(grid: Grid, tables: list[Table]) -> list[content.PageTable]:
    """The claims and the published values beside the measured; nothing if no cell was published."""
    compared = comparison.compare_with_paper(grid, tables)
    if not compared:
        return []
    published = {each.table for each in compared}
    judged = claim_tests.format_claims(claim_tests.evaluate_claims(grid, tables))
    return [
        content.page_table(judged, prose=True),
        *(
            content.page_table(comparison.format_comparison(table, compared))
            for table in tables
            if table.spec.name in published
        ),
    ]


def _figures(
    source: FigureSource, tables: list[Table], sources: Collection[FigureInput]
) -> Iterator[PageFigure]:
    shown = _shown(source, tables)
    for kind in FIGURES.values():
        if kind.drawn_from not in sources:
            continue
        for values, part in source.split(kind.scope):
            # A dataset without a trained model has its figures too: they say what is lacking.
            chosen = shown.get(values.get("dataset", ""), {})
            if all(values[axis] == chosen.get(axis, values[axis]) for axis in kind.scope):
                title = source.grid.dataset_title(part.dataset) if "dataset" in values else ""
                yield _figure(kind, part, title)


def _figure(kind: FigureKind, part: FigureSource, dataset: str) -> PageFigure:
    from hgmvae_bench.analysis.figures.style import to_png, to_svg

    number = f"Fig. {kind.name}: " if kind.name[0].isdigit() else ""
    title = f"{number}{kind.title}" + (f", {dataset}" if dataset else "")
    try:
        figure = kind.draw(part)
        if kind.drawn_from == "models":
            mime, picture = "image/png", to_png(figure, dpi=IMAGE_DPI)
        else:
            mime, picture = "image/svg+xml", to_svg(figure)
    except UserError as error:
        return PageFigure(title, dataset=dataset, lacking=str(error))
    return PageFigure(
        title,
        alt=figure.get_suptitle().replace("\n", "; "),
        image=f"data:{mime};base64,{base64.b64encode(picture).decode()}",
        dataset=dataset,
    )


def _shown(source: FigureSource, tables: list[Table]) -> dict[str, dict[ScopeAxis, Any]]:
    """For each dataset the latent dimension and the model whose pictures are shown."""
    ranks: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for entry in (entry for table in tables for entry in table.entries):
        if entry.rank is not None:
            ranks[entry.dataset, entry.latent_dim, entry.model].append(entry.rank)
    trained: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for values, part in source.split(("dataset", "latent_dim")):
        try:
            trained[values["dataset"]][values["latent_dim"]] = list(part.runs_to_draw())
        except FigureError:
            continue
    shown: dict[str, dict[ScopeAxis, Any]] = {}
    for dataset, by_dim in trained.items():
        latent_dim = max(by_dim, key=lambda dim: (len(by_dim[dim]), dim))
        of_model = {
            model: fmean(ranks.get((dataset, latent_dim, model), [len(source.models)]))
            for model in by_dim[latent_dim]
        }
        best = min(of_model, key=lambda model: of_model[model])
        shown[dataset] = {"latent_dim": latent_dim, "model": best}
    return shown


def _policy(css: str, script: str) -> str:
    """What the page may do: its own style and script, pictures that stand in it, nothing else."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; "
        f"script-src 'sha256-{script_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("hgmvae_bench.analysis.report") / name).read_text(encoding="utf-8")
