"""Reading and validating grid files."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from hgmvae_bench.grid import yaml12
from hgmvae_bench.grid.cells import Grid
from hgmvae_bench.grid.errors import (
    GridError,
    LocatedError,
    describe_spec_error,
    find_errors,
    join_lines,
)
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.plugins.protocols import UnknownNameError


def grid_names() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("hgmvae_bench.grid").joinpath("presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_grid(name_or_path: str) -> Grid:
    """Read a grid by the name of one that comes with the package, or from a YAML file.

    Raises:
        UnknownNameError: if there is no such grid.
        GridError: if the file cannot be read or does not describe a grid.
    """
    if Path(name_or_path).suffix in {".yaml", ".yml"}:
        try:
            with Path(name_or_path).open("rb") as stream:
                content = stream.read(yaml12.MAX_BYTES + 1)
            if len(content) > yaml12.MAX_BYTES:
                raise _too_large(name_or_path)
            text = content.decode().replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(f"cannot read grid file {name_or_path}: {error}") from error
        return parse_grid(text, name_or_path)
    if name_or_path not in grid_names():
        raise UnknownNameError("grid", name_or_path, [*grid_names(), "PATH.yaml"])
    file = resources.files("hgmvae_bench.grid").joinpath("presets") / f"{name_or_path}.yaml"
    return parse_grid(file.read_text(encoding="utf-8"), f"{name_or_path}.yaml")


def parse_grid(text: str, filename: str) -> Grid:
    """Validate the text of a grid file.

    Args:
        text: YAML 1.2.
        filename: the file's name, for messages.

    Raises:
        GridError: if the text is not YAML, is too large, or does not describe a grid. There is one
            line per error with the file, the line, the key and what was expected.
    """
    if len(text) > yaml12.MAX_BYTES:
        raise _too_large(filename)
    try:
        document = yaml12.load(text)
    except yaml12.YamlError as error:
        place = "" if error.line is None else f":{error.line}"
        raise GridError(f"{filename}{place}: not valid YAML: {error.problem}") from error
    errors: list[LocatedError] = [(each, "this key occurs twice") for each in document.duplicates]
    format_error = functools.partial(yaml12.format_error, filename, document.node)
    spec: GridSpec | None = None
    try:
        spec = GridSpec.model_validate(document.content)
    except ValidationError as error:
        errors += [(each["loc"], describe_spec_error(each)) for each in error.errors()]
    if spec is not None:
        errors += find_errors(spec)
    if spec is None or errors:
        raise GridError(join_lines(format_error(*each) for each in errors))
    return Grid(spec, spec, format_error)


def _too_large(filename: str) -> GridError:
    return GridError(f"{filename}: the grid file is larger than {yaml12.MAX_BYTES:,} bytes")
