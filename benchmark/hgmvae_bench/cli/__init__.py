"""The command ``hgmvae-bench``.

Each command imports heavy libraries only when it runs, so that help and lists are fast.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from hgmvae_bench.cli import data, run, show
from hgmvae_bench.cli.check import check
from hgmvae_bench.cli.common import print_error
from hgmvae_bench.cli.init import init
from hgmvae_bench.cli.plan import plan
from hgmvae_bench.cli.speed import speed
from hgmvae_bench.utils.code_version import PACKAGE, code_version
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import escape_controls

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,
)
for command in (
    run.run,
    plan,
    run.evaluate,
    check,
    run.merge,
    init,
    show.table,
    show.compare,
    show.export,
    show.page,
    show.figure,
    show.report,
    speed,
):
    app.command()(command)
app.command("list")(show.list_)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hgmvae-bench {version('hgmvae-bench')}{_commit()}")
        raise typer.Exit


def _commit() -> str:
    """The commit of the code in parentheses; empty if it is unknown."""
    code = code_version(PACKAGE)
    if code is None:
        return ""
    changes = " with uncommitted changes" if code["dirty"] else ""
    return f" (commit {str(code['commit'])[:10]}{changes})"


@app.callback()
def _program(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and the commit, and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Benchmark of the VAE family on generation and clustering."""


class _EscapingFormatter(logging.Formatter):
    """Log formatter that escapes control characters, which file names may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record), keep="\n\t")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that the user can fix are shown without a traceback.

    Args:
        arguments: the arguments; those of the process by default.

    Raises:
        SystemExit: always, with the exit status.
    """
    # The messages of the package, for example that it decodes a dataset for minutes.
    log = logging.getLogger("hgmvae_bench")
    log.handlers = [logging.StreamHandler()]
    log.handlers[0].setFormatter(_EscapingFormatter())
    log.setLevel(logging.INFO)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="hgmvae-bench")
    except UserError as error:
        print_error(f"{error.label}{error}")
        sys.exit(error.exit_status)
