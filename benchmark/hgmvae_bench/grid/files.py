"""Reading and validating grid files."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from hgmvae_bench.grid import yaml12
from hgmvae_bench.grid.cells import Grid
from hgmvae_bench.grid.errors import (
    GridError,
    LocatedError,
    describe_validation_error,
    find_errors,
    join_lines,
)
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.grid.yaml12 import Location
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.utils.text import escape_controls


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
    node, content, errors = _read(text, filename)
    format_error = functools.partial(yaml12.format_error, filename, node)
    spec: GridSpec | None = None
    try:
        spec = GridSpec.model_validate(content)
    except ValidationError as error:
        errors += [(each["loc"], _describe(each)) for each in error.errors(include_url=False)]
    if spec is not None:
        errors += find_errors(spec)
    if spec is None or errors:
        raise GridError(join_lines(format_error(*each) for each in errors))
    return Grid(spec, spec, format_error)


def _read(text: str, filename: str) -> tuple[yaml.Node | None, Any, list[LocatedError]]:
    """Parse YAML into nodes and Python objects, and find duplicate keys."""
    if len(text) > yaml12.MAX_BYTES:
        raise _too_large(filename)
    try:
        loader = yaml12.Loader(text)
        node = yaml12.compose(loader)
        # Construction merges the keys of `<<` into the mappings, so duplicates are found before.
        errors = [(each, "this key occurs twice") for each in yaml12.duplicate_keys(node)]
        content = None if node is None else loader.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = chr(error.character)
        raise GridError(
            f"{filename}:{line}: not valid YAML: the character {character!r} is not allowed"
        ) from error
    except RecursionError as error:
        raise GridError(f"{filename}: not valid YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        problem = escape_controls(str(getattr(error, "problem", None) or error))
        raise GridError(f"{filename}{place}: not valid YAML: {problem}") from error
    return node, content, errors


def _too_large(filename: str) -> GridError:
    return GridError(f"{filename}: the grid file is larger than {yaml12.MAX_BYTES:,} bytes")


def _describe(error: Any) -> str:
    """Describe one of pydantic's errors in a grid file."""
    kind, location = error["type"], error["loc"]
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        return str(UnknownNameError("key", str(location[-1]), _keys(location[:-1])))
    if kind == "model_type":
        error = {**error, "msg": f"expected keys with values ({', '.join(_keys(location))})"}
    return describe_validation_error(error)


def _keys(location: Location) -> list[str]:
    """Keys that a section of a grid file may have."""
    section: Any = GridSpec
    if location:
        annotation = GridSpec.model_fields[str(location[0])].annotation
        *_, section = get_args(annotation) or (annotation,)
    return list(section.model_fields)
