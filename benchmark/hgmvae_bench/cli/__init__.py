"""The command ``hgmvae-bench``.

Heavy imports stand inside the commands, so that help and lists answer at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from hgmvae_bench.cli import data, run, show, speed
from hgmvae_bench.cli.init import init
from hgmvae_bench.utils.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,
)
for command in (
    run.run,
    run.plan,
    run.evaluate,
    run.check,
    run.merge,
    init,
    show.table,
    show.compare,
    show.export,
    show.figure,
    show.report,
    speed.speed,
):
    app.command()(command)
app.command("list")(show.list_)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from hgmvae_bench import __version__

        typer.echo(f"hgmvae-bench {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Benchmark of the VAE family on generation and clustering."""


def main() -> None:
    """Entry point: errors that the user can mend are shown without a traceback."""
    # What the package has to say beside its results, such as that images are decoded for minutes.
    log = logging.getLogger("hgmvae_bench")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    try:
        app()
    except UserError as error:
        typer.secho(f"{error.label}{error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_status)
