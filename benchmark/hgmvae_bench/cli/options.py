"""Options of the commands, and what their values mean."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated

import typer

from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins

DEFAULT_RESULTS = Path("results/local")


class Device(enum.StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(enum.StrEnum):
    """Number format of the networks in training."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"


def _use(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Look names up in the plug-ins for as long as the command takes."""
    if not context.resilient_parsing:
        context.with_resource(using_plugins([LocalPlugin.find(name) for name in names or []]))
    return names


def _folder(context: typer.Context, results: str | Path) -> Path:
    """The folder to work on: the one that is named, or a copy of what lies elsewhere."""
    from hgmvae_bench.storage.remote import is_url, local_copy

    named = str(results)
    if is_url(named) and not context.resilient_parsing:
        folder: Path = context.with_resource(local_copy(named))
        return folder
    if Path(named).is_file():
        raise typer.BadParameter(f"{named} is a file")
    return Path(named)


def duration(text: str) -> float:
    """Seconds of ``90s``, ``30m``, ``12h`` or ``2d``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"'{text}' is not a duration such as 90s, 30m, 12h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


Results = Annotated[
    Path,
    typer.Option(
        "--results",
        metavar="DIR|URL",
        parser=str,
        help="Results folder, or a URL such as s3://bucket/folder.",
        callback=_folder,
    ),
]

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="Models, datasets and metrics that are not installed (repeatable).",
        callback=_use,
    ),
]
"""Commands need not look at the value: the names are known as soon as it is read."""

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
        "[default: one a core; on a GPU as many as its measured memory holds]",
    ),
]
StackSeeds = Annotated[
    bool,
    typer.Option(
        "--stack-seeds",
        help="On a GPU, train the seeds of a cell as one model of stacked weights, not in turns.",
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
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds per cell.")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", min=1, help="Side in pixels, instead of each dataset's own."),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="local|ray", help="Where the runs are done.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Of the Ray cluster, such as auto on one of its nodes.  [default: this machine alone]",
    ),
]
RayCpus = Annotated[int, typer.Option("--ray-cpus", min=1, help="CPU cores of a run on Ray.")]
RayGpus = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus",
        min=0,
        help="Share of a GPU that a run on Ray takes, such as 0.25.  "
        "[default: 1 with --device cuda, else 0]",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="mlflow[:URI]|tensorboard[:DIR]",
        help="Log every run there too (repeatable).",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="DURATION",
        help="A run that takes longer counts as hung and failed: 90s, 30m, 12h.  [default: none]",
        parser=duration,
    ),
]
GridToRun = Annotated[str, typer.Option("--grid", help="A grid's name, or a YAML file.")]
GridOfResults = Annotated[
    str | None, typer.Option("--grid", help="Which grid, if the folder holds several.")
]


def metric_names(listed: str) -> list[str]:
    """Registered names out of a list with commas; one that is unknown is an error."""
    from hgmvae_bench.plugins.registry import METRICS

    names = [name.strip() for name in listed.split(",")]
    for name in names:
        METRICS[name]
    return names


def resolved(device: Device) -> Device:
    """The device that ``auto`` means here.

    Raises:
        typer.BadParameter: if a GPU is asked for and there is none.
    """
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here; use --device cpu", param_hint="--device")
    if device is Device.auto:
        return Device.cuda if torch.cuda.is_available() else Device.cpu
    return device
