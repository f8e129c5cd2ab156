"""The command ``init``, which writes a grid file or a plug-in package to start from."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from hgmvae_bench.utils.atomic_files import write_output
from hgmvae_bench.utils.errors import UserError

PLUGIN_FILES = {
    "plugin/pyproject.toml.txt": "pyproject.toml",
    "plugin/README.md": "README.md",
    "grid.yaml": "benchmark.yaml",
    "plugin/model.py.txt": "$module.py",
    "plugin/test_model.py.txt": "tests/test_$module.py",
}
"""Where each template of a plug-in package goes; ``.txt`` hides them from linters."""


class InitError(UserError):
    """A file or package that ``init`` cannot write; the message names it and says what to do."""


def init(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Grid file to write, such as benchmark.yaml; with --plugin, the package's folder.",
        ),
    ],
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Write a package with a model and its test instead.")
    ] = False,
) -> None:
    """Write a commented grid file, or a package with a model of your own.

    Nothing that exists is overwritten.
    """
    files = plugin_package(path) if plugin else grid_file(path)
    if existing := [file for file in files if file.exists()]:
        names = ", ".join(map(str, existing))
        raise InitError(f"{names} exists already; remove it or choose another path")
    for file, text in files.items():
        write_output(file, text.encode())
        typer.echo(f"wrote {file}")
    if plugin:
        typer.echo(f"next: cd {path} && python -m pip install -e . pytest && pytest")
    else:
        typer.echo(f"next: hgmvae-bench run --grid {path}")


def grid_file(path: Path) -> dict[Path, str]:
    """Return a commented grid file by its path.

    Raises:
        InitError: if the path does not end in ``.yaml``.
    """
    if path.suffix not in {".yaml", ".yml"}:
        raise InitError(
            f"{path} must end in .yaml for a grid file; add --plugin to write a plug-in package"
        )
    values = {"name": _slug(path.stem), "title": "VAE and HGMVAE-U", "model": "hgmvae-u"}
    return {path: _fill_template("grid.yaml", **values)}


def plugin_package(folder: Path) -> dict[Path, str]:
    """Return the files of a package with a model, its test and a grid.

    The folder names the model.

    Raises:
        InitError: if the folder's name cannot be the name of a model.
    """
    name = folder.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InitError(
            f"'{name}' cannot name a model: expected lower-case letters, digits and single "
            "hyphens, such as free-bits"
        )
    values = {
        "name": name,
        "module": name.replace("-", "_"),
        "title": f"VAE and {name}",
        "model": name,
    }
    return {
        folder / Template(target).substitute(values): _fill_template(source, **values)
        for source, target in PLUGIN_FILES.items()
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "grid"


def _fill_template(template: str, **values: str) -> str:
    """Read a template and replace its placeholders."""
    file = resources.files("hgmvae_bench.cli") / "templates" / template
    return Template(file.read_text(encoding="utf-8")).safe_substitute(values)
