"""Commands that train or score: ``run``, ``evaluate``, ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgmvae_bench.cli.common import (
    choose_grid,
    execution_options,
    local_plugins,
    print_table,
    print_unsuccessful,
    print_warning,
    results_folder,
    split_names,
    write_tables,
)
from hgmvae_bench.cli.option_groups import (
    ExecutorOptions,
    GridOptions,
    PlaceOptions,
    expand_groups,
)
from hgmvae_bench.cli.options import (
    Datasets,
    DryRun,
    GridOfResults,
    ImageSize,
    LatentDims,
    Models,
    Quiet,
    StackSeeds,
)
from hgmvae_bench.utils.text import pluralize


@expand_groups
def run(
    grid: GridOptions,
    place: PlaceOptions,
    executor: ExecutorOptions,
    image_size: ImageSize = None,
    stack_seeds: StackSeeds = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Retry runs recorded as failed or diverged."),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged records aside and repeat their runs.")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train the missing runs of a grid and print its tables.

    Exit status: 0 if all runs are complete, 1 if a run failed or diverged, 2 if the grid cannot be
    run as asked.
    """
    with local_plugins(place.plugins):
        # Checked before torch is imported, so that an unknown name is reported at once.
        chosen = choose_grid(grid, image_size)
        from hgmvae_bench.cli.progress import print_plan, progress
        from hgmvae_bench.execution.api import plan_grid, run_grid

        with (
            results_folder(place.results) as folder,
            progress(chosen, folder, quiet=quiet) as reporter,
        ):
            options = execution_options(folder, place, reporter, executor, stack_seeds=stack_seeds)
            if dry_run:
                print_plan(plan_grid(chosen, retry_failed=retry_failed, **options))
                return
            outcome = run_grid(chosen, retry_failed=retry_failed, repair=repair, **options)
            write_tables(outcome)
            all_complete = print_unsuccessful(outcome)
    raise typer.Exit(0 if all_complete else 1)


@expand_groups
def evaluate(
    metrics: Annotated[
        str,
        typer.Option("--metrics", metavar="NAMES", help="Metrics, separated by commas: nmi,ari."),
    ],
    place: PlaceOptions,
    executor: ExecutorOptions,
    grid: GridOfResults = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    quiet: Quiet = False,
) -> None:
    """Compute metrics of finished runs from their stored weights.

    Nothing is trained. Metrics recorded as missing are computed again; those with a value are not.
    """
    names = split_names(metrics)
    with local_plugins(place.plugins), results_folder(place.results) as folder:
        from hgmvae_bench.cli.progress import progress
        from hgmvae_bench.execution.api import evaluate_grid
        from hgmvae_bench.storage.store import Store

        chosen = Store(folder).grid(grid).select(dataset, model, latent_dim)
        with progress(chosen, folder, quiet=quiet) as reporter:
            options = execution_options(folder, place, reporter, executor)
            outcome = evaluate_grid(names, grid=chosen, **options)
        for spec in chosen.spec.tables:
            typer.echo()
            print_table(outcome.table(spec.name, metrics=names).formatted)


def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Results folders.", show_default=False)
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="DIR", help="Results folder that receives the runs.")
    ],
) -> None:
    """Copy the runs of several results folders into one.

    If two folders have different results of one run, a complete record takes precedence over
    one that is not, and then the earlier one. Nothing is deleted.
    """
    from hgmvae_bench.storage.merge import merge as merge_folder

    for source in sources:
        merged = merge_folder(source, into)
        present = len(merged.identical) + len(merged.equivalent)
        typer.echo(
            f"{source}: {pluralize(len(merged.copied), 'run')} copied, {present} already there"
        )
        for key in merged.superseded:
            print_warning(f"  {key}: the results differ; the record of {source} counts")
        for key in merged.kept:
            print_warning(f"  {key}: the results differ; the record of {into} counts")
        for name in merged.differing_grids:
            print_warning(f"  grid {name}: the files differ; the one of {into} stays")
