"""Commands that train or score: ``run``, ``plan``, ``evaluate``, ``check``, ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgmvae_bench.cli.common import (
    choose_engine,
    drive,
    score_controls,
    show_progress,
    write_tables,
)
from hgmvae_bench.cli.options import (
    DEFAULT_RESULTS,
    Data,
    Datasets,
    Device,
    DeviceOption,
    ExecutorName,
    GridOfResults,
    GridToRun,
    ImageSize,
    LatentDims,
    Models,
    Plugins,
    Precision,
    RayAddress,
    RayCpus,
    RayGpus,
    Results,
    Seeds,
    StackSeeds,
    TimeLimit,
    Track,
    Weights,
    Workers,
    metric_names,
    resolved,
)
from hgmvae_bench.utils.text import pluralize

if TYPE_CHECKING:
    from hgmvae_bench.execution.plan import ExecutionPlan
    from hgmvae_bench.grid import Cell, Grid, Run


def run(
    grid: GridToRun,
    results: Results = DEFAULT_RESULTS,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    stack_seeds: StackSeeds = False,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = None,
    seeds: Seeds = None,
    image_size: ImageSize = None,
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Number format of the training, instead of the grid's."),
    ] = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed and diverged runs again.")
    ] = False,
    weights: Weights = None,
    time_limit: TimeLimit = None,
    track: Track = None,
    plugins: Plugins = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Move damaged and edited records aside, and do those runs again."
        ),
    ] = False,
) -> None:
    """Do what is missing of a grid, and print its tables.

    Exit status: 0 if all runs are complete, 1 if one failed or diverged, 2 if nothing could be
    run as asked.
    """
    from hgmvae_bench.grid import load_grid

    chosen = (
        load_grid(grid)
        .with_models(model or [])
        .select(dataset, model, latent_dim, seeds, image_size, precision)
    )

    # Only now, as these need torch: a name that is not known is answered at once.
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.execution.plan import make_plan
    from hgmvae_bench.execution.preflight import check_cells, load_data
    from hgmvae_bench.storage.store import Store

    resources, engine = choose_engine(
        executor, device, workers, ray_address, ray_cpus, ray_gpus, stacked=stack_seeds
    )
    store, data_root = Store(results), data or catalogue.default_root()
    images = load_data(chosen, data_root)
    if repair:
        for path in store.repair():
            typer.echo(f"moved aside: {path}", err=True)
    plan = make_plan(chosen, images, store.runs(), retry_failed=retry_failed)
    check_cells(chosen, plan.cells_to_train, images)
    with show_progress(chosen, store, track) as reporter:
        store.add_grid(chosen)
        complete = drive(
            chosen, plan, store, data_root, resources, engine, weights, reporter, time_limit
        )
    score_controls(chosen, images, store, device, weights)
    write_tables(chosen, store)
    raise typer.Exit(0 if complete else 1)


def plan(
    grid: GridToRun,
    results: Results = DEFAULT_RESULTS,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    seeds: Seeds = None,
    image_size: ImageSize = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    weights: Weights = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
) -> None:
    """Say what a grid still needs: runs, data, weights, time and disk. Nothing is trained.

    Time comes from the records of like runs, or from a few training steps where there are none.
    What `run` would refuse (settings that fit neither data nor model) is refused here too.
    """
    import json

    import torch

    from hgmvae_bench.cli.progress import plan_text
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.execution.estimate import survey
    from hgmvae_bench.grid import load_grid
    from hgmvae_bench.storage.store import Store
    from hgmvae_bench.utils.threads import available_cores

    chosen = load_grid(grid).with_models(model or [])
    chosen = chosen.select(dataset, model, latent_dim, seeds, image_size)
    device = resolved(device)
    workers = workers or (1 if device is Device.cuda else available_cores())
    torch.set_num_threads(max(1, available_cores() // workers))
    found = survey(
        chosen,
        Store(results),
        data or catalogue.default_root(),
        weights=weights,
        device=torch.device(device.value),
        workers=workers,
        progress=lambda text: typer.echo(f"calibrating {text}", err=True),
    )
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else plan_text(found), nl=as_json)


def evaluate(
    metrics: Annotated[
        str, typer.Option("--metrics", help="Registered names, with commas between them.")
    ],
    results: Results = DEFAULT_RESULTS,
    grid: GridOfResults = None,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    weights: Weights = None,
    time_limit: TimeLimit = None,
    track: Track = None,
    plugins: Plugins = None,
) -> None:
    """Compute metrics of finished runs from what they saved, training nothing.

    Metrics that have a value stay as they are; those recorded as missing are tried again.
    """
    from hgmvae_bench.analysis.render import to_text
    from hgmvae_bench.analysis.tables import build_table
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.execution.plan import make_evaluation_plan
    from hgmvae_bench.execution.preflight import load_data
    from hgmvae_bench.storage.store import Store

    names = metric_names(metrics)
    resources, engine = choose_engine(executor, device, workers, ray_address, ray_cpus, ray_gpus)
    store, data_root = Store(results), data or catalogue.default_root()
    chosen = store.grid(grid).select(dataset, model, latent_dim)
    images = load_data(chosen, data_root)
    plan = make_evaluation_plan(chosen, images, store.runs(), names)
    with show_progress(chosen, store, track) as reporter:
        drive(chosen, plan, store, data_root, resources, engine, weights, reporter, time_limit)
    if plan.total:
        score_controls(chosen, images, store, device, weights, names)
    runs = list(store.runs().values())
    for spec in chosen.spec.tables:
        typer.echo(
            f"\n{to_text(build_table(chosen, spec.with_metrics(names), runs).formatted)}", nl=False
        )


def check(
    grid: GridToRun,
    baseline: Annotated[
        Path, typer.Option("--baseline", help="File of the baseline.", dir_okay=False)
    ],
    update: Annotated[
        bool, typer.Option("--update", help="Write the baseline from these runs; compare nothing.")
    ] = False,
    results: Results = DEFAULT_RESULTS,
    data: Data = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    seeds: Seeds = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            "--precision",
            help="Number format of the new runs, whatever the baseline's: does it shift anything?",
        ),
    ] = None,
    weights: Weights = None,
    plugins: Plugins = None,
) -> None:
    """Hold a grid's runs against a baseline's distribution over seeds, doing what is missing.

    Exit status: 0 if nothing shifted beyond noise, 1 if something did or a run or value is missing,
    2 if nothing could be compared.
    """
    from hgmvae_bench.analysis.regression.baseline import (
        load_baseline,
        make_baseline,
        require_same_setup,
        save_baseline,
    )
    from hgmvae_bench.analysis.regression.check import (
        MIN_BASELINE_SEEDS,
        compare_with_baseline,
        format_check,
    )
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.execution.plan import grid_runs, make_plan
    from hgmvae_bench.execution.preflight import check_cells, load_data
    from hgmvae_bench.grid import load_grid
    from hgmvae_bench.storage.store import Store

    resources, engine = choose_engine("local", device, workers)
    chosen = load_grid(grid).select(dataset, model, latent_dim, seeds, precision=precision)
    old = None if update else load_baseline(baseline)
    if old is not None and precision is not None:
        old = old.in_precision(precision)
    store, data_root = Store(results), data or catalogue.default_root()
    images = load_data(chosen, data_root)
    if old is not None:
        require_same_setup(old, chosen, grid_runs(chosen, images))

    def do(wanted: Grid, cells: list[Cell]) -> tuple[list[Run], ExecutionPlan]:
        plan = make_plan(wanted, images, store.runs(), cells=cells)
        check_cells(wanted, plan.cells_to_train, images)
        with show_progress(wanted, store, None) as reporter:
            drive(wanted, plan, store, data_root, resources, engine, weights, reporter, None)
        return grid_runs(wanted, images, cells), plan

    store.add_grid(chosen)
    runs, plan = do(chosen, list(chosen.cells))
    if old is None:
        save_baseline(made := make_baseline(chosen, runs, store.runs()), baseline)
        size = f"{pluralize(len(made.cells), 'cell')}, {pluralize(chosen.spec.seeds, 'seed')} each"
        typer.echo(f"\n{size}: {baseline}")
        if chosen.spec.seeds < MIN_BASELINE_SEEDS:
            few = f"warning: a baseline of fewer than {MIN_BASELINE_SEEDS} seeds "
            few += "finds gross shifts only"
            typer.secho(few, fg=typer.colors.YELLOW, err=True)
        return
    outcome = compare_with_baseline(old, chosen, runs, store.runs())
    if outcome.shifts:
        suspects = [cell for cell in chosen.cells if cell.identity in outcome.suspect_identities]
        typer.echo(
            f"\n{len(outcome.shifts)} suspected; as many seeds again of "
            f"{pluralize(len(suspects), 'cell')}:"
        )
        doubled = chosen.select(seeds=2 * chosen.spec.seeds)
        runs, _ = do(doubled, suspects)
        outcome = outcome.confirmed_by(compare_with_baseline(old, doubled, runs, store.runs()))
    typer.echo(f"\n{format_check(outcome)}")
    if plan.complete:
        typer.echo(
            f"{len(plan.complete)} of {plan.total} runs had been done before and say nothing of "
            "what changed since; a --results folder of its own has every run done anew"
        )
    raise typer.Exit(0 if outcome.passed else 1)


def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Results folders.", show_default=False)
    ],
    into: Annotated[Path, typer.Option("--into", help="Results folder that takes them in.")],
) -> None:
    """Bring results folders, of several machines for instance, into one.

    Of a run that two folders have with different results, a complete record counts before one that
    is not, then the one that finished first; the other stays where it is.
    """
    from hgmvae_bench.storage.merge import merge as merge_folder

    for source in sources:
        merged = merge_folder(source, into)
        typer.echo(
            f"{source}: {pluralize(len(merged.copied), 'run')} copied, "
            f"{len(merged.identical) + len(merged.equivalent)} there before"
        )
        for key in merged.superseded:
            typer.echo(f"  {key}: differs; the record of {source} counts")
        for key in merged.kept:
            typer.echo(f"  {key}: differs; the record of {into} counts")
        for name in merged.differing_grids:
            typer.echo(f"  grid {name}: differs; the one of {into} stays")
