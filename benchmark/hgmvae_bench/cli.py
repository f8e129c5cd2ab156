"""The command ``hgmvae-bench``.

Heavy imports stand inside the commands, so that help and lists answer at once.
"""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgmvae_bench.data.cli import app as data_app
from hgmvae_bench.errors import UserError

if TYPE_CHECKING:
    from hgmvae_bench.grid import Grid
    from hgmvae_bench.runner import Plan
    from hgmvae_bench.store import Store

app = typer.Typer(
    help="Benchmark of the VAE family on generation and clustering.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(data_app, name="data")

DEFAULT_RESULTS = Path("results/local")


class Device(enum.StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Kind(enum.StrEnum):
    """What ``list`` lists."""

    models = "models"
    datasets = "datasets"
    metrics = "metrics"
    grids = "grids"


class TableFormat(enum.StrEnum):
    """How ``table`` writes."""

    text = "text"
    csv = "csv"
    latex = "latex"


Results = Annotated[Path, typer.Option("--results", help="Results folder.", file_okay=False)]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="HGMVAE_BENCH_DATA", help="Data folder.  [default: user cache]"),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a GPU if there is one.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Runs side by side; they share the machine's threads.  "
        "[default: one a core, or one on a GPU]",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Folder of pretrained weights for FID and LPIPS.")
]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="Only this (repeatable).")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this (repeatable).")]
LatentDims = Annotated[
    list[int] | None, typer.Option("--latent-dim", help="Only this (repeatable).")
]
GridOfResults = Annotated[
    str | None, typer.Option("--grid", help="Which grid, if the folder holds several.")
]


@app.command()
def run(
    grid: Annotated[str, typer.Option("--grid", help="A grid's name, or a YAML file.")],
    results: Results = DEFAULT_RESULTS,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds per cell.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels, instead of each dataset's own.")
    ] = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed and diverged runs again.")
    ] = False,
    weights: Weights = None,
) -> None:
    """Do what is missing of a grid, and print its tables.

    Exit status: 0 if all runs are complete, 1 if one failed or diverged, 2 if nothing could be
    run as asked.
    """
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.grid import load_grid
    from hgmvae_bench.runner import check_models, load_data, make_plan
    from hgmvae_bench.store import Store

    chosen = load_grid(grid).select(dataset, model, latent_dim, seeds, image_size)
    store, data_root = Store(results), data or catalogue.default_root()
    images = load_data(chosen, data_root)
    plan = make_plan(chosen, images, store.runs(), retry_failed=retry_failed)
    check_models(plan, images)
    store.add_grid(chosen)
    complete = _run_plan(plan, store, data_root, device, workers, weights)
    _write_tables(chosen, store)
    raise typer.Exit(0 if complete else 1)


@app.command()
def evaluate(
    metrics: Annotated[
        str, typer.Option("--metrics", help="Registered names, with commas between them.")
    ],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    weights: Weights = None,
) -> None:
    """Compute metrics of finished runs from what they saved, training nothing.

    Metrics that have a value stay as they are; those recorded as missing are tried again.
    """
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.plugins import METRICS
    from hgmvae_bench.runner import load_data, make_evaluation_plan
    from hgmvae_bench.store import Store
    from hgmvae_bench.tables import build_table, to_text

    names = [name.strip() for name in metrics.split(",")]
    for name in names:
        METRICS[name]
    store, data_root = Store(results), data or catalogue.default_root()
    chosen = store.grid(grid).select(dataset, model, latent_dim)
    plan = make_evaluation_plan(chosen, load_data(chosen, data_root), store.runs(), names)
    _run_plan(plan, store, data_root, device, workers, weights)
    runs = list(store.runs().values())
    for spec in chosen.spec.tables:
        typer.echo(f"\n{to_text(build_table(chosen, spec.showing(names), runs))}", nl=False)


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List what the suite knows by name, third parties' plug-ins included."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "title", box=None, pad_edge=False)
    if kind is not Kind.grids:
        table.add_column("reference")
    for row in _listing(kind):
        table.add_row(*row)
    Console().print(table)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="A table's name in its grid, such as 1.")],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    format: Annotated[TableFormat, typer.Option("--format")] = TableFormat.text,  # noqa: A002
) -> None:
    """Print one of a grid's tables from the records, training nothing."""
    from hgmvae_bench.store import Store
    from hgmvae_bench.tables import WRITERS, build_table

    store = Store(results)
    chosen = store.grid(grid)
    built = build_table(chosen, chosen.table(name), store.runs().values())
    _, write = WRITERS[format.value]
    typer.echo(write(built), nl=False)


def _listing(kind: Kind) -> list[tuple[str, ...]]:
    from hgmvae_bench.grid import grid_names, load_grid
    from hgmvae_bench.plugins import DATASETS, METRICS, MODELS, Registry

    if kind is Kind.grids:
        return [(name, load_grid(name).spec.title) for name in grid_names()]
    registries: dict[Kind, Registry[Any]] = {
        Kind.models: MODELS,
        Kind.datasets: DATASETS,
        Kind.metrics: METRICS,
    }
    plugins = registries[kind]
    return [(name, plugins[name].title, plugins[name].reference) for name in plugins]


def _run_plan(
    plan: Plan,
    store: Store,
    data_root: Path,
    device: Device,
    workers: int | None,
    weights: Path | None,
) -> bool:
    import torch
    from rich.console import Console

    from hgmvae_bench.executor import available_cores
    from hgmvae_bench.progress import reporter
    from hgmvae_bench.runner import run_plan

    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here; use --device cpu", param_hint="--device")
    if device is Device.auto:
        device = Device.cuda if torch.cuda.is_available() else Device.cpu
    with reporter(Console()) as progress:
        return run_plan(
            plan,
            store,
            data_root=data_root,
            device=device.value,
            workers=workers or (1 if device is Device.cuda else available_cores()),
            reporter=progress,
            weights=weights,
        )


def _write_tables(grid: Grid, store: Store) -> None:
    """Every table of the grid to the terminal, and in every format to the results folder."""
    from hgmvae_bench.store import write_atomically
    from hgmvae_bench.tables import WRITERS, build_table, to_text

    runs = list(store.runs().values())
    folder = store.root / "tables" / grid.spec.name
    for spec in grid.spec.tables:
        built = build_table(grid, spec, runs)
        typer.echo(f"\n{to_text(built)}", nl=False)
        for suffix, write in WRITERS.values():
            write_atomically(folder / f"table-{spec.name}.{suffix}", write(built).encode())
    typer.echo(f"\ntables in {folder}{os.sep}, records in {store.root / 'records'}{os.sep}")


def main() -> None:
    """Entry point: errors that the user can mend are shown without a traceback."""
    try:
        app()
    except UserError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
