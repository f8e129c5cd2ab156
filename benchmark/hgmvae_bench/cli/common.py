"""Helpers of the commands: plug-ins, results folders, grids, options and output."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.utils.text import escape_controls

if TYPE_CHECKING:
    from hgmvae_bench.analysis.render import FormattedTable
    from hgmvae_bench.cli.option_groups import ExecutorOptions, GridOptions, PlaceOptions
    from hgmvae_bench.execution.options import ExecutionOptions
    from hgmvae_bench.execution.results import Results
    from hgmvae_bench.execution.runner import Reporter
    from hgmvae_bench.grid import Grid


@contextmanager
def local_plugins(names: list[str] | None) -> Iterator[None]:
    """Activate the plug-ins that ``--plugin`` names."""
    with using_plugins(LocalPlugin.find(name) for name in names or []):
        yield


@contextmanager
def results_folder(results: str) -> Iterator[Path]:
    """Yield the results folder; for a URL a local copy, which is uploaded at the end.

    Raises:
        typer.BadParameter: if ``results`` is a file.
    """
    from hgmvae_bench.storage import remote

    if Path(results).is_file():
        raise typer.BadParameter(
            f"expected a folder, got the file {results}", param_hint="--results"
        )
    with remote.results_folder(results) as folder:
        yield folder


def choose_grid(options: GridOptions, image_size: int | None = None) -> Grid:
    """Load a grid and apply the options that filter it or replace its settings.

    Raises:
        UnknownNameError, GridError: if the grid, a filter or a setting is invalid.
    """
    from hgmvae_bench.grid import load_grid
    from hgmvae_bench.grid.overrides import override, parse_assignments

    # A grid cannot list all models that take an argument, so naming one is enough to add it.
    with_argument = [name for name in options.model or [] if ":" in name]
    chosen = load_grid(options.grid).with_models(with_argument)
    chosen = chosen.select(
        options.dataset,
        options.model,
        options.latent_dim,
        options.seeds,
        image_size,
        options.precision,
    )
    return override(chosen, parse_assignments(options.settings)) if options.settings else chosen


def split_names(text: str) -> list[str]:
    """Split names that are separated by commas; each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def execution_options(
    folder: Path,
    place: PlaceOptions,
    reporter: Reporter | None = None,
    executor: ExecutorOptions | None = None,
    *,
    stack_seeds: bool = False,
) -> ExecutionOptions:
    """Keyword arguments of the Python API for the options of a command.

    Args:
        folder: results folder, instead of ``place.results``, which may be a URL.
        place: folders, device and number of workers.
        reporter: receives the progress.
        executor: the executor, the time limit and the trackers.
        stack_seeds: whether to train the seeds of a cell as one model.

    Raises:
        typer.BadParameter: if seeds are to be stacked on Ray, or an option for Ray is passed
            without it.
    """
    chosen: ExecutionOptions = {
        "results": folder,
        "data": place.data,
        "weights": place.weights,
        "device": place.device,
        "workers": place.workers,
        "stack_seeds": stack_seeds,
        "advice": f"finished runs are stored; to continue: {command_line()}",
    }
    if reporter is not None:
        chosen["reporters"] = [reporter]
    if executor is not None:
        chosen["executor"] = executor.executor
        chosen["time_limit"] = executor.time_limit
        chosen["track"] = executor.track or []
        if executor.executor != "ray" and (given := _given_ray_options(executor)):
            raise typer.BadParameter("needs --executor ray", param_hint=", ".join(given))
        if executor.executor == "ray":
            if stack_seeds:
                raise typer.BadParameter(
                    "needs the executor local and the device cuda", param_hint="--stack-seeds"
                )
            from hgmvae_bench.execution.backends import ray_executor

            chosen["workers"] = None  # The executor has the number.
            chosen["executor"] = ray_executor(
                place.device,
                place.workers,
                address=executor.ray_address,
                cpus=executor.ray_cpus,
                gpus=executor.ray_gpus,
            )
    return chosen


def _given_ray_options(options: ExecutorOptions) -> list[str]:
    """List the options for Ray that differ from their defaults."""
    return [
        f"--{each.name.replace('_', '-')}"
        for each in fields(options)
        if each.name.startswith("ray_") and getattr(options, each.name) != each.default
    ]


def check_names(parameter: str, resolve: Callable[[str], object], names: Iterable[str]) -> None:
    """Check the names that a parameter of a command passes.

    Raises:
        typer.BadParameter: if one is unknown, or its argument is invalid.
    """
    from hgmvae_bench.grid.errors import check_name

    for name in names:
        for _, message in check_name(resolve, name):
            raise typer.BadParameter(message, param_hint=parameter)


def command_line() -> str:
    """Return the command as the user typed it."""
    return shlex.join(["hgmvae-bench", *sys.argv[1:]])


def terminal_width() -> int | None:
    """Return the terminal's width in columns; None if the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(table: FormattedTable) -> None:
    """Print a table, fitted to the terminal."""
    from hgmvae_bench.analysis.render import to_text

    typer.echo(to_text(table, width=terminal_width()), nl=False)


def write_tables(results: Results) -> None:
    """Print every table of the grid, and write each in all formats to the results folder."""
    from hgmvae_bench.analysis.render import WRITERS
    from hgmvae_bench.utils.atomic_files import write_output

    folder = results.path / "tables" / results.grid.spec.name
    for table in results.tables().values():
        formatted = table.formatted
        typer.echo()
        print_table(formatted)
        for suffix, write in WRITERS.values():
            write_output(folder / f"{formatted.name}.{suffix}", write(formatted).encode())
    typer.echo(f"\ntables in {folder}{os.sep}, records in {results.path / 'records'}{os.sep}")


def print_unsuccessful(results: Results) -> bool:
    """Name every run that failed or diverged, with its reason and its log.

    Returns:
        Whether all runs of the grid are complete.
    """
    from hgmvae_bench.cli.progress import EventText

    runs = [run for run in results.runs if run.record.seed < results.grid.spec.seeds]
    if lines := EventText(results.grid, results.path).unsuccessful(runs):
        print_warning("\n".join([*lines, "--retry-failed repeats them"]))
    return not lines and len(runs) == len(results.grid.cells) * results.grid.spec.seeds


def print_warning(text: str) -> None:
    """Print a warning to the error stream, in yellow if that is a terminal."""
    _print_error(text, "yellow")


def print_error(text: str) -> None:
    """Print an error to the error stream, in red if that is a terminal."""
    _print_error(text, "red")


def _print_error(text: str, style: str) -> None:
    from rich.console import Console

    # File names and messages of other libraries may contain terminal escapes.
    text = escape_controls(text, keep="\n\t")
    # Rich honours NO_COLOR and writes no colours to files.
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)
