"""Commands that show registered names and results, from ``list`` to ``report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hgmvae_bench.cli.common import (
    local_plugins,
    print_table,
    print_warning,
    results_folder,
)
from hgmvae_bench.cli.options import (
    Controls,
    Data,
    Datasets,
    GridOfResults,
    LatentDims,
    Models,
    Plugins,
    Results,
)
from hgmvae_bench.utils.bounds import DEFAULT_RESULTS

if TYPE_CHECKING:
    from hgmvae_bench.analysis.figures.catalogue import FigureInput


Kind = Literal["models", "datasets", "metrics", "grids", "figures"]
"""Kinds of names that ``list`` prints."""

ReportFigures = Literal["all", "records", "none"]
"""Figures of a report."""

FormatOption = Annotated[
    Literal["text", "csv", "markdown", "latex"],
    typer.Option("--format", help="Output format; text fits the terminal's width."),
]


def list_(
    kind: Annotated[Kind, typer.Argument(help="Kind of names to list.")], plugins: Plugins = None
) -> None:
    """List registered models, datasets or metrics, or the grids and figures."""
    with local_plugins(plugins):
        rows = list_rows(kind)
    heads = ("name", "title", "reference")[: len(rows[0])]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        typer.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def list_rows(kind: Kind) -> list[tuple[str, ...]]:
    """Names and titles, and for plug-ins their references."""
    if kind == "grids":
        from hgmvae_bench.grid import grid_names, load_grid

        return [(name, load_grid(name).spec.title) for name in grid_names()]
    if kind == "figures":
        from hgmvae_bench.analysis.figures.catalogue import FIGURES

        return [(name, figure.title) for name, figure in FIGURES.items()]
    from hgmvae_bench.plugins.registry import DATASETS, METRICS, MODELS, Registry

    registries: dict[Kind, Registry[Any]] = {
        "models": MODELS,
        "datasets": DATASETS,
        "metrics": METRICS,
    }
    plugins = registries[kind]
    return [(name, plugins[name].title, plugins[name].reference) for name in plugins]


def table(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Table of the grid, such as 1.")],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    format: FormatOption = "text",  # noqa: A002
    all_metrics: Annotated[
        bool,
        typer.Option("--all-metrics", help="Show every metric that the runs have."),
    ] = False,
    controls: Controls = False,
    compare: Annotated[
        Literal["paper"] | None,
        typer.Option(
            "--compare",
            help="Print every value as published, measured and difference, with a verdict, and the "
            "claims about them (as CSV only the values).",
        ),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Print a table of a grid from its records. Nothing is trained."""
    from hgmvae_bench.analysis.export import formatted_comparison
    from hgmvae_bench.analysis.render import WRITERS
    from hgmvae_bench.execution.results import Results as GridResults

    with local_plugins(plugins), results_folder(results) as folder:
        opened = GridResults(folder, grid)
        if compare is None:
            built = opened.table(name, controls=controls, all_metrics=all_metrics)
            shown = [built.formatted]
        else:
            # A claim may need cells of the grid's other tables.
            opened.grid.table(name)
            shown = formatted_comparison(opened.grid, list(opened.tables().values()), name)
    if format == "text":
        for part in shown:
            print_table(part)
        return
    _, write = WRITERS[format]
    typer.echo("\n".join(map(write, shown[:1] if format == "csv" else shown)), nl=False)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder.", file_okay=False)],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="The folder to compare with it.", file_okay=False)
    ],
    format: FormatOption = "text",  # noqa: A002
    plugins: Plugins = None,
) -> None:
    """Compare two results folders cell by cell: means, differences, Welch's tests.

    p-values are corrected by Holm's method over all values. Markdown suits a pull request's
    comment. Nothing is trained.
    """
    from hgmvae_bench.analysis.folder_comparison import compare_folders
    from hgmvae_bench.analysis.render import WRITERS

    with local_plugins(plugins):
        compared = compare_folders(first, second)
    if format == "text":
        print_table(compared.table)
        counts = ", ".join(f"{n} {outcome}" for outcome, n in compared.counts.items())
        typer.echo(f"\n{counts or 'no metric of a cell in common'}")
        return
    _, write = WRITERS[format]
    typer.echo(write(compared.table), nl=False)


def export(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder to write to.", file_okay=False)
    ],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    controls: Controls = False,
    plugins: Plugins = None,
) -> None:
    """Write all tables as CSV, Markdown, LaTeX and text, and every value as Parquet.

    tables.tex is a document of all tables. Nothing is trained.
    """
    from hgmvae_bench.execution.results import Results as GridResults

    with local_plugins(plugins), results_folder(results) as folder:
        files = GridResults(folder, grid).export(output, controls=controls)
    typer.echo(f"{len(files)} files in {output}{os.sep}; tables.tex is a document of all tables")


def page(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Markdown page with generated parts.", exists=True, dir_okay=False
        ),
    ],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    plugins: Plugins = None,
) -> None:
    """Regenerate the marked parts of a Markdown page from the records.

    Each part is between the lines `<!-- begin: NAME, generated -->` and `<!-- end: NAME -->`. NAME
    is `summary of the records` (verdicts on the paper's values and claims) or `measured values`
    (with PCA below the models if it was scored).
    """
    from hgmvae_bench.execution.results import Results as GridResults

    with local_plugins(plugins), results_folder(results) as folder:
        GridResults(folder, grid).update_page(file)


def figure(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Figure, such as 3 (see `list figures`).")
    ],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE|DIR",
            help="A .png or .svg file, or a folder for both.  [default: RESULTS/figures/GRID]",
        ),
    ] = None,
    data: Data = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Seed whose codes and images are drawn.  [default: the first complete one]",
        ),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Draw a figure from records, codes and weights. Nothing is trained.

    A grid with several datasets, latent dims or models gives several figures.

    Exit status: 0 if all figures were drawn, 1 if some could not be drawn, 2 if none was.
    """
    from hgmvae_bench.analysis.figures import FigureError, FigureSource, figure_kind
    from hgmvae_bench.analysis.figures.files import write_figures

    kind = figure_kind(name)
    errors: list[str] = []
    written = 0
    with local_plugins(plugins), results_folder(results) as folder:
        source = FigureSource.open(folder, grid=grid, data=data)
        source = source.select(dataset, model, latent_dim, seed=seed)
        target = output or folder / "figures" / source.grid.spec.name
        for path, error in write_figures(kind, source, target):
            if error is None:
                typer.echo(str(path))
                written += 1
            else:
                errors.append(str(error))
    reasons = "\n".join(dict.fromkeys(errors))
    if not written:
        raise FigureError(reasons)
    if reasons:
        print_warning(f"not drawn: {reasons}")
        raise typer.Exit(1)


def report(
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="The HTML file.", dir_okay=False)
    ] = Path("report.html"),
    data: Data = None,
    figures: Annotated[
        ReportFigures,
        typer.Option(
            "--figures",
            help="Figures: all, only those drawn from records alone, or none.",
        ),
    ] = "all",
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="DIR",
            help="Another results folder; the report gets a section that compares the two.",
            file_okay=False,
        ),
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Write one self-contained HTML file on a results folder. Nothing is trained.

    It opens from disk and loads nothing from elsewhere.
    """
    from hgmvae_bench.execution.results import Results as GridResults

    inputs: dict[ReportFigures, tuple[FigureInput, ...] | None] = {
        "all": None,
        "records": ("records",),
        "none": (),
    }
    with local_plugins(plugins), results_folder(results) as folder:
        GridResults(folder, grid, data=data).report(
            output, figures=inputs[figures], against=against
        )
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
