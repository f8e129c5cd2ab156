"""What the commands that train and score have in common."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hgmvae_bench.cli.options import Device, resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hgmvae_bench.data import ImageData
    from hgmvae_bench.execution.backends import Executor, Resources
    from hgmvae_bench.execution.plan import ExecutionPlan
    from hgmvae_bench.execution.runner import Reporter
    from hgmvae_bench.grid import Grid
    from hgmvae_bench.storage.store import Store


def choose_engine(
    executor: str,
    device: Device,
    workers: int | None,
    ray_address: str | None = None,
    ray_cpus: int = 1,
    ray_gpus: float | None = None,
    *,
    stacked: bool = False,
) -> tuple[Resources, Executor]:
    """What runs are given, and what does them.

    Raises:
        typer.BadParameter: if seeds are to be stacked where each has a process of its own.
    """
    from hgmvae_bench.execution.backends import Resources, open_executor

    if executor == "ray":
        # The driver need not have what the nodes have.
        gpus = (1.0 if device is Device.cuda else 0.0) if ray_gpus is None else ray_gpus
        chosen = "cuda" if gpus and device is not Device.cpu else "cpu"
    else:
        gpus, chosen = 0.0, resolved(device).value
    if stacked and (executor == "ray" or chosen != "cuda"):
        raise typer.BadParameter(
            "every seed has a process of its own "
            + ("on Ray" if executor == "ray" else "on a CPU")
            + "; leave it out",
            param_hint="--stack-seeds",
        )
    resources = Resources(chosen, workers, ray_address, ray_cpus, gpus, stacked)
    return resources, open_executor(executor, resources)


def drive(
    grid: Grid,
    plan: ExecutionPlan,
    store: Store,
    data_root: Path,
    resources: Resources,
    engine: Executor,
    weights: Path | None,
    reporter: Reporter,
    time_limit: float | None,
) -> bool:
    """Do what a plan says, stopping at a signal; whether every run is complete."""
    from hgmvae_bench.execution.runner import execute_plan
    from hgmvae_bench.execution.signals import stop_on_signals
    from hgmvae_bench.execution.tasks import RunContext

    again = shlex.join(["hgmvae-bench", *sys.argv[1:]])
    with stop_on_signals(f"what is finished is stored; to go on: {again}") as stopping:
        return execute_plan(
            plan,
            RunContext(
                store,
                data_root,
                resources.device,
                weights=weights,
                time_limit=time_limit,
                provenance={"grid": {"name": grid.spec.name, "sha256": grid.sha256}},
            ),
            executor=engine,
            reporter=reporter,
            stopping=stopping,
        )


@contextmanager
def show_progress(grid: Grid, store: Store, track: list[str] | None) -> Iterator[Reporter]:
    """What shows a grid's progress, and the trackers that are asked for."""
    from rich.console import Console

    from hgmvae_bench.cli.progress import Reporters, reporter
    from hgmvae_bench.execution.tracking import TrackingContext, tracking
    from hgmvae_bench.execution.upload import UploadReporter
    from hgmvae_bench.storage.remote import RemoteResults

    console = Console()
    remote = RemoteResults.of(store.root)
    occasion = TrackingContext(grid.spec.name, store.root if remote is None else None)

    def warn(text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    with reporter(console, store) as progress, tracking(track or [], occasion, warn) as trackers:
        senders = [UploadReporter(remote, warn)] if remote is not None else []
        yield Reporters([progress, *trackers, *senders])


def score_controls(
    grid: Grid,
    data: Mapping[tuple[str, int], ImageData],
    store: Store,
    device: Device,
    weights: Path | None,
    metrics: list[str] | None = None,
) -> None:
    """Score the controls of a grid's datasets that have not been scored, and say which."""
    import torch

    from hgmvae_bench.execution.controls import score_controls

    score_controls(
        grid,
        data,
        store,
        device=torch.device(resolved(device).value),
        weights=weights,
        metrics=metrics,
        on_scored=lambda record: typer.echo(f"control {record.key}: scored"),
    )


def write_tables(grid: Grid, store: Store) -> None:
    """Every table of the grid to the terminal, and in every format to the results folder."""
    from hgmvae_bench.analysis.render import WRITERS, to_text
    from hgmvae_bench.analysis.tables import build_table
    from hgmvae_bench.utils.atomic_files import write_atomically

    runs = list(store.runs().values())
    folder = store.root / "tables" / grid.spec.name
    for spec in grid.spec.tables:
        built = build_table(grid, spec, runs)
        typer.echo(f"\n{to_text(built.formatted)}", nl=False)
        for suffix, write in WRITERS.values():
            write_atomically(
                folder / f"table-{spec.name}.{suffix}", write(built.formatted).encode()
            )
    typer.echo(f"\ntables in {folder}{os.sep}, records in {store.root / 'records'}{os.sep}")
