"""Options that several commands share. Parsing them has no side effects."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from hgmvae_bench.utils.bounds import MAX_SECONDS, Device, Precision
from hgmvae_bench.utils.text import quote


def parse_duration(text: str) -> float:
    """Convert a duration such as ``90s``, ``30m``, ``12h`` or ``2d`` to seconds.

    Raises:
        typer.BadParameter: if the text is no positive duration, or exceeds `MAX_SECONDS`.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([smhd])", text.strip())
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
    if seconds > MAX_SECONDS:
        raise typer.BadParameter(f"expected a duration of at most 3650d, got {quote(text)}")
    if not seconds:
        example = "a duration such as 90s, 30m, 12h or 2d"
        raise typer.BadParameter(f"expected {example}, got {quote(text)}")
    return seconds


def parse_share(text: str) -> float:
    """Parse a finite number that is not negative, such as ``0.25``.

    Raises:
        typer.BadParameter: if the text is none.
    """
    with suppress(ValueError):
        if math.isfinite(share := float(text)) and share >= 0:
            return share
    raise typer.BadParameter(f"expected a number such as 0.25, got {quote(text)}")


Results = Annotated[
    str,
    typer.Option(
        "--results",
        metavar="DIR|URL",
        help="Results folder, or a URL such as s3://bucket/folder.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="File or module with models, datasets and metrics to use (repeatable).",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="HGMVAE_BENCH_DATA",
        help="Data folder.  [default: below the user's cache folder]",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Device; auto selects a GPU if there is one.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Number of concurrent runs, which share the machine's threads.  "
        "[default: one per core; on a GPU limited by its memory]",
    ),
]
StackSeeds = Annotated[
    bool,
    typer.Option(
        "--stack-seeds",
        help="On a GPU, train the seeds of a cell as one model of stacked weights.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="DIR", help="Folder with the pretrained weights of FID and LPIPS."
    ),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", metavar="NAME", help="Restrict the grid to this dataset (repeatable)."
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Restrict the grid to this model (repeatable)."),
]
LatentDims = Annotated[
    list[int] | None,
    typer.Option(
        "--latent-dim", metavar="L", help="Restrict the grid to this latent dim (repeatable)."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", min=1, help="Runs per cell, instead of the grid's number."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of the grid, such as training.epochs=5 or model.beta=4.0 "
        "(repeatable). It becomes part of the run keys.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PX",
        min=1,
        help="Side of the images in pixels, instead of each dataset's.",
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="Number format of training, instead of the grid's."),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor", metavar="local|ray", help="Run on this machine or on a Ray cluster."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Address of the Ray cluster, such as auto.  [default: start Ray on this machine]",
    ),
]
RayCpus = Annotated[
    int, typer.Option("--ray-cpus", metavar="N", min=1, help="CPU cores per run on Ray.")
]
RayGpus = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus",
        metavar="SHARE",
        parser=parse_share,
        help="Share of a GPU per run on Ray, such as 0.25.  "
        "[default: 1 with --device cuda, else 0]",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER[:PLACE]",
        help="Log every run to a tracker: mlflow[:URI], tensorboard[:DIR] or wandb[:PROJECT] "
        "(repeatable).",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="DURATION",
        help="Record a run that takes longer as failed, such as 90s, 30m or 12h.  "
        "[default: no limit]",
        parser=parse_duration,
    ),
]
GridToRun = Annotated[
    str,
    typer.Option(
        "--grid",
        metavar="NAME|FILE",
        help="Grid: a name (see `hgmvae-bench list grids`) or a YAML file.",
    ),
]
GridOfResults = Annotated[
    str | None,
    typer.Option(
        "--grid", metavar="NAME", help="Grid to read, if the results folder holds several."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be trained or scored, and stop.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only tables, warnings and failed runs.")
]
Controls = Annotated[
    bool,
    typer.Option("--controls", help="Add the controls: real images, mean image, noise, PCA."),
]
