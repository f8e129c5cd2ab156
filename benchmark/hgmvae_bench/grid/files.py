"""Grid files: reading them, and saying where in the file a fault lies."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from hgmvae_bench.grid.cells import Grid
from hgmvae_bench.grid.errors import (
    GridError,
    LocatedError,
    Location,
    describe_validation_error,
    find_errors,
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
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(f"cannot read grid file {name_or_path}: {error}") from error
        return parse_grid(text, name_or_path)
    if name_or_path not in grid_names():
        raise UnknownNameError("grid", name_or_path, [*grid_names(), "PATH.yaml"])
    file = resources.files("hgmvae_bench.grid").joinpath("presets") / f"{name_or_path}.yaml"
    return parse_grid(file.read_text(encoding="utf-8"), f"{name_or_path}.yaml")


def parse_grid(text: str, filename: str) -> Grid:
    """Validate the text of a grid file; ``filename`` is for messages.

    Raises:
        GridError: with a line per fault: file, line, key and what was expected.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        # Before the content is made: that writes merged keys (<<) into the mappings.
        faults = list(_duplicate_keys(node))
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
        problem = getattr(error, "problem", None) or error
        raise GridError(f"{filename}{place}: not valid YAML: {problem}") from error

    told = functools.partial(_told, filename, node)
    spec: GridSpec | None = None
    try:
        spec = GridSpec.model_validate(content)
    except ValidationError as error:
        faults += [(fault["loc"], _explain(fault)) for fault in error.errors()]
    if spec is not None:
        faults += find_errors(spec)
    if spec is None or faults:
        raise GridError("\n".join(told(*fault) for fault in faults))
    return Grid(spec, spec, told)


class _Loader(yaml.SafeLoader):
    """A loader whose every refusal is a ``YAMLError``, also that of the 13th month."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error


def _explain(fault: Any) -> str:
    kind, location = fault["type"], fault["loc"]
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        return str(UnknownNameError("key", str(location[-1]), _keys(location[:-1])))
    if kind == "model_type":
        fault["msg"] = f"expected keys with values ({', '.join(_keys(location))})"
    return describe_validation_error(fault)


def _keys(location: Location) -> list[str]:
    """The keys that a part of a grid file may have."""
    section: Any = GridSpec
    if location:
        annotation = GridSpec.model_fields[str(location[0])].annotation
        *_, section = get_args(annotation) or (annotation,)
    return list(section.model_fields)


def _duplicate_keys(node: yaml.Node | None) -> Iterator[LocatedError]:
    """Keys that a mapping has twice: YAML forbids them, PyYAML silently keeps the last."""
    stack: list[tuple[Location, yaml.Node | None]] = [((), node)]
    visited: set[yaml.Node] = set()  # Aliases lead to a node again, and may lead round in a circle.
    while stack:
        location, current = stack.pop()
        if current is None or current in visited:
            continue
        visited.add(current)
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            # Keys that are no scalars are refused when the content is made.
            scalars = (item for item in current.value if isinstance(item[0], yaml.ScalarNode))
            for key, value in scalars:
                if key.value in seen:
                    yield (*location, key.value), "this key stands twice"
                seen.add(key.value)
                stack.append(((*location, key.value), value))
        elif isinstance(current, yaml.SequenceNode):
            stack.extend(((*location, i), item) for i, item in enumerate(current.value))


def _told(filename: str, node: yaml.Node | None, location: Location, message: str) -> str:
    return f"{filename}:{_line(node, location)}: {_dotted(location)}{message}"


def _line(node: yaml.Node | None, location: Location) -> int:
    """Line (from 1) of the innermost part of ``location`` that stands in the file."""
    line = 1
    for part in location:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            child = node.value[part] if part < len(node.value) else None
            line = child.start_mark.line + 1 if child is not None else line
        if child is None:
            break
        node = child
    return line


def _dotted(location: Location) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return f"{path}: " if path else ""
