"""The command ``plan``, which estimates what a grid still needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hgmvae_bench.cli.common import (
    choose_grid,
    execution_options,
    local_plugins,
    results_folder,
)
from hgmvae_bench.cli.option_groups import GridOptions, PlaceOptions, expand_groups
from hgmvae_bench.cli.options import ImageSize


@expand_groups
def plan(
    grid: GridOptions,
    place: PlaceOptions,
    image_size: ImageSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a grid still needs: runs, data, weights, time and disk.

    Nothing is trained, except for a few steps if no record has the time of a run. Settings that
    `run` would refuse are refused here too.
    """
    with local_plugins(place.plugins):
        chosen = choose_grid(grid, image_size)
        from hgmvae_bench.cli.progress import print_plan
        from hgmvae_bench.execution.api import plan_grid

        with results_folder(place.results) as folder:
            survey = plan_grid(
                chosen,
                on_calibration=lambda name: typer.echo(f"timing a few steps of {name}", err=True),
                **execution_options(folder, place),
            )
    if as_json:
        typer.echo(json.dumps(survey.as_json(), indent=1))
    else:
        print_plan(survey)
