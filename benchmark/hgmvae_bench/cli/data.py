"""The commands ``data fetch`` and ``data check``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from hgmvae_bench.cli.common import check_names, local_plugins
from hgmvae_bench.cli.options import Data, Plugins

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

app = typer.Typer(help="Fetch and check datasets.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Dataset (see `hgmvae-bench list datasets`)."),
]


@app.command("fetch")
def fetch_command(name: Name, data: Data = None, plugins: Plugins = None) -> None:
    """Download, verify and unpack a dataset. Files that are complete are kept.

    Exit status: 0 if the dataset is complete, 1 if it could not be fetched, 2 on wrong usage.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from hgmvae_bench.data import catalogue

    root = data or catalogue.default_root()
    bar = _TerminalProgress(DownloadColumn(), TransferSpeedColumn())
    with local_plugins(plugins), _exit_status(name), bar:
        catalogue.fetch(name, root, bar)
    typer.echo(f"{name} is in {root}")


@app.command("check")
def check_command(name: Name, data: Data = None, plugins: Plugins = None) -> None:
    """List a dataset's files and verify that they are complete.

    Exit status: 0 if the dataset is complete, 1 if a file is missing or damaged, 2 on wrong usage.
    """
    from rich.progress import MofNCompleteColumn

    from hgmvae_bench.data import catalogue

    root = data or catalogue.default_root()
    bar = _TerminalProgress(MofNCompleteColumn())
    with local_plugins(plugins), _exit_status(name), bar:
        report = catalogue.check(name, root, bar)
    for file in report.files:
        typer.echo(f"{file.state:8} {file.path}  {file.detail}")
    typer.echo(f"{report.title} is {'complete' if report.complete else 'incomplete'}")
    if not report.complete:
        if report.advice:
            typer.echo(report.advice, err=True)
        raise typer.Exit(1)


@contextmanager
def _exit_status(name: str) -> Iterator[None]:
    """Print an error of the named dataset as one message, and exit with status 1.

    Raises:
        typer.BadParameter: if there is no such dataset, or its argument is invalid.
    """
    from hgmvae_bench.data import DataError, catalogue
    from hgmvae_bench.plugins.protocols import PluginError

    check_names("NAME", catalogue.resolve_dataset, [name])
    try:
        yield
    except (DataError, PluginError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


class _TerminalProgress:
    """Progress bars, one per file, on a terminal; nothing if the output is a file or a pipe."""

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

    def __enter__(self) -> _TerminalProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, task: str, done: int, total: int | None) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
