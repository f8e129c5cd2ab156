"""`hgmvae-bench data`: fetch datasets and check the files that are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgmvae_bench.cli.options import Plugins

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

app = typer.Typer(help="Fetch datasets, and check the files that are there.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A dataset (hgmvae-bench list datasets), or folder:PATH."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="HGMVAE_BENCH_DATA",
        help="The data folder; below the user's cache folder unless named.",
        show_default=False,
    ),
]


@app.command("fetch")
def fetch_command(name: Name, data: DataFolder = None, plugins: Plugins = None) -> None:
    """Download a dataset, verify it and unpack it; what is there already is left alone.

    A download that was cut off goes on where it ended. Exit codes: 0 it is there, 1 it could not
    be had, 2 bad usage.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from hgmvae_bench.data import catalogue

    root = data or catalogue.default_root()
    with _exit_codes(), _Bar(DownloadColumn(), TransferSpeedColumn()) as bar:
        catalogue.fetch(name, root, bar)
    typer.echo(f"{name} is in {root}")


@app.command("check")
def check_command(name: Name, data: DataFolder = None, plugins: Plugins = None) -> None:
    """Say which files of a dataset are there, and whether they are whole.

    Exit codes: 0 all of it is whole, 1 something is absent or damaged, 2 bad usage.
    """
    from rich.progress import MofNCompleteColumn

    from hgmvae_bench.data import catalogue

    root = data or catalogue.default_root()
    with _exit_codes(), _Bar(MofNCompleteColumn()) as bar:
        report = catalogue.check(name, root, bar)
    for file in report.files:
        typer.echo(f"{file.state:8} {file.path}  {file.detail}")
    typer.echo(f"{report.title} is {'complete' if report.complete else 'not complete'}")
    if not report.complete:
        typer.echo(report.advice, err=True)
        raise typer.Exit(1)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Answer every expected error with one message and its exit code."""
    from hgmvae_bench.data import DataError
    from hgmvae_bench.plugins.protocols import PluginError, UnknownNameError

    try:
        yield
    except (UnknownNameError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except (DataError, PluginError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


class _Bar:
    """A progress bar per task on a terminal; nothing where the output is no terminal."""

    def __init__(self, *columns: ProgressColumn) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=(console := Console(stderr=True)),
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, task: str, done: int, total: int | None) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
