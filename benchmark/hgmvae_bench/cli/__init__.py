"""The command ``hgmvae-bench``.

Heavy imports stand inside the commands, so that help and lists answer at once.
"""

from __future__ import annotations

import logging
import sys

import typer

from hgmvae_bench.cli import data, measuring, running, showing
from hgmvae_bench.errors import UserError

app = typer.Typer(
    help="Benchmark of the VAE family on generation and clustering.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    running.run,
    running.plan,
    running.evaluate,
    running.check,
    running.merge,
    showing.table,
    showing.export,
    showing.figure,
    showing.report,
    measuring.speed,
):
    app.command()(command)
app.command("list")(showing.list_)
app.add_typer(data.app, name="data")


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
