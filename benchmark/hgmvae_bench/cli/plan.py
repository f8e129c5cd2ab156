"""The command ``plan``, which estimates what a grid still needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hgmvae_bench.cli.common import API_DEVICES, choose_grid, local_plugins, results_folder
from hgmvae_bench.cli.options import (
    DEFAULT_RESULTS,
    Data,
    Datasets,
    Device,
    DeviceOption,
    GridToRun,
    ImageSize,
    LatentDims,
    Models,
    Plugins,
    PrecisionOption,
    Results,
    Seeds,
    Settings,
    Weights,
    Workers,
)


def plan(
    grid: GridToRun,
    results: Results = DEFAULT_RESULTS,
    data: Data = None,
    dataset: Datasets = None,
    model: Models = None,
    latent_dim: LatentDims = None,
    seeds: Seeds = None,
    image_size: ImageSize = None,
    precision: PrecisionOption = None,
    settings: Settings = None,
    device: DeviceOption = Device.auto,
    workers: Workers = None,
    weights: Weights = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a grid still needs: runs, data, weights, time and disk.

    Nothing is trained, except for a few steps if no record has the time of a run. Settings that
    `run` would refuse are refused here too.
    """
    with local_plugins(plugins):
        chosen = choose_grid(
            grid,
            datasets=dataset,
            models=model,
            latent_dims=latent_dim,
            seeds=seeds,
            image_size=image_size,
            precision=precision,
            settings=settings,
        )
        from hgmvae_bench.cli.progress import print_plan
        from hgmvae_bench.execution.api import plan_grid

        with results_folder(results) as folder:
            survey = plan_grid(
                chosen,
                results=folder,
                data=data,
                device=API_DEVICES[device],
                workers=workers,
                weights=weights,
                on_calibration=lambda name: typer.echo(f"timing a few steps of {name}", err=True),
            )
    if as_json:
        typer.echo(json.dumps(survey.as_json(), indent=1))
    else:
        print_plan(survey)
