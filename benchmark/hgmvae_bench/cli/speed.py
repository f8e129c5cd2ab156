"""The command ``speed``, which measures the throughput of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgmvae_bench.cli.common import check_names, split_names
from hgmvae_bench.cli.option_groups import expand_groups
from hgmvae_bench.cli.options import Data, DeviceOption
from hgmvae_bench.utils.bounds import (
    MAX_BATCH_SIZE,
    MAX_LATENT_DIM,
    MAX_WIDTH,
    Precision,
)

if TYPE_CHECKING:
    from hgmvae_bench.grid import Cell


DEFAULT_MODELS = ("vae", "gmvae", "hgmvae-u")


@dataclass(frozen=True)
class SpeedOptions:
    """Models, sizes and repetitions of the measurement."""

    dataset: Annotated[
        str, typer.Option("--dataset", metavar="NAME", help="Dataset to train on.")
    ] = "digits"
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Model to train (repeatable).  [default: vae, gmvae, hgmvae-u]",
        ),
    ] = None
    latent_dim: Annotated[
        int,
        typer.Option(
            "--latent-dim",
            metavar="L",
            min=1,
            max=MAX_LATENT_DIM,
            help="Number of latent dimensions.",
        ),
    ] = 8
    width: Annotated[
        int,
        typer.Option(
            "--width", metavar="N", min=1, max=MAX_WIDTH, help="Channels of the first convolution."
        ),
    ] = 32
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", min=2, max=MAX_BATCH_SIZE, help="Images per training step."
        ),
    ] = 128
    metrics: Annotated[
        str,
        typer.Option("--metrics", metavar="NAMES", help="Metrics to time, separated by commas."),
    ] = "sc,ch,db,accuracy,svm-accuracy,ssim,ms-ssim"
    precision: Annotated[
        Precision, typer.Option("--precision", help="Number format of training.")
    ] = "float32"
    device: DeviceOption = "auto"
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="CPU threads.  [default: all]"),
    ] = None
    joint_seeds: Annotated[
        int | None,
        typer.Option(
            "--joint-seeds",
            metavar="N",
            min=1,
            help="Seeds that the suite trains at once.  [default: one per thread; 10 on a GPU]",
        ),
    ] = None
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=4, help="Training steps per measurement.")
    ] = 10
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            metavar="N",
            min=1,
            help="Measurements of each trainer; at least six give 95 % intervals.",
        ),
    ] = 7
    data: Data = None
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="Folder to write speed.json to."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False


@expand_groups
def speed(options: SpeedOptions) -> None:
    """Measure this machine: training beside pythae's trainer, scoring and start-up."""
    import torch
    from rich.console import Console

    from hgmvae_bench.data import catalogue
    from hgmvae_bench.execution.backends import local_device
    from hgmvae_bench.execution.preflight import check_metrics
    from hgmvae_bench.execution.speed.measure import SpeedSettings, format_speed, measure_speed
    from hgmvae_bench.plugins.registry import resolve_model
    from hgmvae_bench.utils.atomic_files import write_output
    from hgmvae_bench.utils.threads import available_cores

    # Unknown names are reported before anything is timed.
    names, models = split_names(options.metrics), options.model or DEFAULT_MODELS
    check_metrics(names)
    check_names("--dataset", catalogue.resolve_dataset, [options.dataset])
    check_names("--model", resolve_model, models)
    device = torch.device(local_device(options.device))
    threads = options.threads or available_cores()
    joint_seeds = options.joint_seeds or (10 if device.type == "cuda" else threads)
    cells = _make_cells(options, models)
    plugin = catalogue.resolve_dataset(options.dataset)
    console = Console(stderr=True)
    report = measure_speed(
        cells,
        plugin.load(options.data or catalogue.default_root(), image_size=plugin.image_size),
        names,
        SpeedSettings(device, threads, joint_seeds, options.steps, options.repeats),
        on_progress=lambda what: console.print(f"[dim]{what}[/dim]"),
    )
    content = json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
    if options.results is not None:
        write_output(options.results / "speed.json", content.encode())
    typer.echo(content if options.as_json else format_speed(report), nl=False)


def _make_cells(options: SpeedOptions, models: Iterable[str]) -> list[Cell]:
    """One cell for each model."""
    from hgmvae_bench.data import catalogue
    from hgmvae_bench.grid import Cell, NetworkSettings, TrainingSettings
    from hgmvae_bench.plugins.registry import resolve_model

    return [
        Cell(
            dataset=options.dataset,
            image_size=catalogue.resolve_dataset(options.dataset).image_size,
            model=name,
            model_settings=resolve_model(name).settings,
            latent_dim=options.latent_dim,
            network=NetworkSettings(width=options.width),
            training=TrainingSettings(batch_size=options.batch_size, precision=options.precision),
        )
        for name in models
    ]
