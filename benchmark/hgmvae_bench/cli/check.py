"""The command ``check``, which compares a grid's runs with a baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hgmvae_bench.cli.common import (
    choose_grid,
    execution_options,
    local_plugins,
    print_warning,
    results_folder,
)
from hgmvae_bench.cli.option_groups import GridOptions, PlaceOptions, expand_groups
from hgmvae_bench.cli.options import Quiet
from hgmvae_bench.utils.text import escape_controls, pluralize


@expand_groups
def check(
    grid: GridOptions,
    place: PlaceOptions,
    baseline: Annotated[
        Path,
        typer.Option("--baseline", metavar="FILE", help="File of the baseline.", dir_okay=False),
    ],
    update: Annotated[
        bool, typer.Option("--update", help="Write the baseline from these runs; compare nothing.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare a grid's runs with a baseline and fail on a regression.

    Missing runs are trained first. With --precision the new runs have another number format than
    the baseline, to see whether that shifts anything.

    Exit status: 0 if nothing has shifted beyond noise, 1 if a measure has shifted or a run or value
    is missing, 2 if the grid and the baseline cannot be compared.
    """
    with local_plugins(place.plugins):
        # `check_grid` applies the precision to the grid and to the baseline.
        chosen = choose_grid(grid if update else replace(grid, precision=None))
        from hgmvae_bench.analysis.regression.check import MIN_BASELINE_SEEDS
        from hgmvae_bench.cli.progress import progress
        from hgmvae_bench.execution.check import RegressionError, check_grid, update_baseline

        with (
            results_folder(place.results) as folder,
            # The runs have the precision, which is part of a cell's identity.
            progress(chosen.select(precision=grid.precision), folder, quiet=quiet) as reporter,
        ):
            options = execution_options(folder, place, reporter)
            if update:
                made = update_baseline(chosen, baseline=baseline, **options)
                cells, n_seeds = pluralize(len(made.cells), "cell"), chosen.spec.seeds
                typer.echo(f"\n{cells}, {pluralize(n_seeds, 'seed')} each: {baseline}")
                if n_seeds < MIN_BASELINE_SEEDS:
                    print_warning(
                        f"warning: a baseline of fewer than {MIN_BASELINE_SEEDS} seeds finds only "
                        "gross shifts"
                    )
                return
            try:
                outcome, status = (
                    check_grid(chosen, baseline=baseline, precision=grid.precision, **options),
                    0,
                )
            except RegressionError as error:
                outcome, status = error.outcome, error.exit_status
            typer.echo(escape_controls(f"\n{outcome}", keep="\n"))
    raise typer.Exit(status)
