"""Commands that show what is there: ``list``, ``table``, ``export``, ``figure``, ``report``."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hgmvae_bench.cli.options import (
    DEFAULT_RESULTS,
    Data,
    Datasets,
    GridOfResults,
    LatentDims,
    Models,
    Plugins,
    Results,
)


class Kind(enum.StrEnum):
    """What ``list`` lists."""

    models = "models"
    datasets = "datasets"
    metrics = "metrics"
    grids = "grids"
    figures = "figures"


class TableFormat(enum.StrEnum):
    """How ``table`` writes."""

    text = "text"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"


class Reference(enum.StrEnum):
    """What measured values are compared with."""

    paper = "paper"


class Figures(enum.StrEnum):
    """Which figures stand in a report."""

    all = "all"
    records = "records"
    none = "none"


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], plugins: Plugins = None
) -> None:
    """List what the suite knows by name, third parties' plug-ins included."""
    rows = listing(kind)
    heads = ("name", "title", "reference")[: len(rows[0])]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        typer.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def listing(kind: Kind) -> list[tuple[str, ...]]:
    """Rows of names and titles, and for plug-ins who published them."""
    if kind is Kind.grids:
        from hgmvae_bench.grid import grid_names, load_grid

        return [(name, load_grid(name).spec.title) for name in grid_names()]
    if kind is Kind.figures:
        from hgmvae_bench.analysis.figures.catalogue import FIGURES

        return [(name, figure.title) for name, figure in FIGURES.items()]
    from hgmvae_bench.plugins.registry import DATASETS, METRICS, MODELS, Registry

    registries: dict[Kind, Registry[Any]] = {
        Kind.models: MODELS,
        Kind.datasets: DATASETS,
        Kind.metrics: METRICS,
    }
    plugins = registries[kind]
    return [(name, plugins[name].title, plugins[name].reference) for name in plugins]


def table(
    name: Annotated[str, typer.Argument(help="A table's name in its grid, such as 1.")],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    format: Annotated[TableFormat, typer.Option("--format")] = TableFormat.text,  # noqa: A002
    plugins: Plugins = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Beside the models: real images, mean image, noise, PCA."),
    ] = False,
    compare: Annotated[
        Reference | None,
        typer.Option(
            "--compare",
            help="Every value as published, measured and difference, with a verdict, and the "
            "paper's claims (as CSV: the values alone).",
        ),
    ] = None,
) -> None:
    """Print one of a grid's tables from the records, training nothing."""
    from hgmvae_bench.analysis.export import formatted_comparison
    from hgmvae_bench.analysis.render import WRITERS
    from hgmvae_bench.analysis.tables import build_table
    from hgmvae_bench.storage.store import Store

    store = Store(results)
    chosen = store.grid(grid)
    spec, runs = chosen.table(name), list(store.runs(on_invalid="warn").values())
    _, write = WRITERS[format.value]
    if compare is None:
        known = store.controls(on_invalid="warn").values() if controls else ()
        sheets = [build_table(chosen, spec, runs, known).formatted]
    else:
        # A claim may need cells of the grid's other tables.
        tables = [build_table(chosen, each, runs) for each in chosen.spec.tables]
        sheets = formatted_comparison(chosen, tables, name)
    shown = sheets[:1] if format is TableFormat.csv else sheets
    typer.echo("\n".join(write(sheet) for sheet in shown), nl=False)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder.", file_okay=False)],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="The folder to compare with it.", file_okay=False)
    ],
    format: Annotated[  # noqa: A002
        TableFormat,
        typer.Option("--format", help="Output format; markdown suits a pull request's comment."),
    ] = TableFormat.text,
    plugins: Plugins = None,
) -> None:
    """Compare two results folders cell by cell: means, differences, Welch's tests.

    p-values are corrected by Holm's method over all values. Nothing is trained.
    """
    from hgmvae_bench.analysis.folder_comparison import compare_folders
    from hgmvae_bench.analysis.render import WRITERS

    compared = compare_folders(first, second)
    _, write = WRITERS[format.value]
    typer.echo(write(compared.table), nl=False)
    if format is TableFormat.text:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in compared.counts.items())
        typer.echo(f"\n{counts or 'nothing to compare'}")


def export(
    output: Annotated[Path, typer.Option("--output", help="Folder to write to.", file_okay=False)],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    plugins: Plugins = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Beside the models: real images, mean image, noise, PCA."),
    ] = False,
) -> None:
    """Write all tables as CSV, Markdown, LaTeX and text, and every value as Parquet.

    tables.tex is a whole document; the others are read by it, or by one of your own. If the paper
    has values of the grid's cells, their heatmap is written as SVG and PNG.
    """
    from hgmvae_bench.analysis.export import export, formatted_tables
    from hgmvae_bench.analysis.figures import FIGURES, FigureSource
    from hgmvae_bench.analysis.figures.files import write_figures
    from hgmvae_bench.analysis.frames import load_results
    from hgmvae_bench.analysis.tables import build_table
    from hgmvae_bench.data.catalogue import default_root
    from hgmvae_bench.storage.store import Store

    store = Store(results)
    chosen, values = store.grid(grid), load_results(results)
    runs = store.runs(on_invalid="warn")
    known = list(store.controls(on_invalid="warn").values()) if controls else []
    tables = [build_table(chosen, spec, runs.values(), known) for spec in chosen.spec.tables]
    files = export(formatted_tables(chosen, tables), values, output)
    source = FigureSource(chosen, store, runs, default_root())
    heatmaps = write_figures(FIGURES["verdicts"], source, output)
    files += [path for path, error in heatmaps if error is None]
    typer.echo(f"{len(files)} files in {output}{os.sep}; tables.tex is a document of all tables")


def figure(
    name: Annotated[str, typer.Argument(help="3, 4, 5a, …; `list figures` tells all.")],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="A .png or .svg file, or a folder for both.  [default: RESULTS/figures/GRID]",
        ),
    ] = None,
    data: Data = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Whose codes and images.  [default: the first complete]"),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Draw a figure from the records, codes and weights, training nothing.

    A grid with several datasets, latent dimensions or models gets as many figures as it takes.

    Exit status: 0 if all were drawn, 1 if some could not be, 2 if none.
    """
    from hgmvae_bench.analysis.figures import FigureError, FigureSource, figure_kind
    from hgmvae_bench.analysis.figures.files import write_figures

    kind = figure_kind(name)
    drawn = FigureSource.open(results, grid=grid, data=data)
    drawn = drawn.select(dataset, model, latent_dim, seed=seed)
    folder = results / "figures" / drawn.grid.spec.name
    lacking: list[str] = []
    written = 0
    for path, error in write_figures(kind, drawn, output or folder):
        if error is None:
            typer.echo(str(path))
            written += 1
        else:
            lacking.append(str(error))
    reasons = "\n".join(dict.fromkeys(lacking))
    if not written:
        raise FigureError(reasons)
    if reasons:
        typer.secho(f"not drawn: {reasons}", fg=typer.colors.YELLOW, err=True)
        raise typer.Exit(1)


def report(
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    output: Annotated[Path, typer.Option("--output", help="The HTML file.", dir_okay=False)] = Path(
        "report.html"
    ),
    data: Data = None,
    figures: Annotated[
        Figures,
        typer.Option(
            "--figures", help="records: none that needs the data and weights; none: tables only."
        ),
    ] = Figures.all,
    plugins: Plugins = None,
) -> None:
    """Write one HTML file that says what a results folder holds, training nothing.

    It opens from disk, without scripts too, and asks for nothing from anywhere.
    """
    from hgmvae_bench.analysis.figures import FigureSource
    from hgmvae_bench.analysis.report import ALL_INPUTS, build_report
    from hgmvae_bench.utils.atomic_files import write_output

    sources = {Figures.all: ALL_INPUTS, Figures.records: ("records",), Figures.none: ()}
    page = build_report(FigureSource.open(results, grid=grid, data=data), figures=sources[figures])
    write_output(output, page.encode())
    typer.echo(f"{output}, {output.stat().st_size / 1e6:.1f} MB")
