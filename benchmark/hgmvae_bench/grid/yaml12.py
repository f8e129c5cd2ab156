"""YAML 1.2 for grid files: the core schema, limits on size, and line numbers.

PyYAML implements YAML 1.1, in which ``1:30`` is 90, ``yes`` is true and ``1e-3`` is text. This
module replaces its rules for scalars by those of the YAML 1.2 core schema
(https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from hgmvae_bench.utils.text import escape_controls, quote, shorten

MAX_BYTES = 1_000_000
"""Maximum size of a grid file. The parser takes some ten seconds per megabyte."""

MAX_VALUES = 100_000
"""Maximum number of keys and values of a grid file, with every alias expanded."""

MAX_INTEGER = 2**63 - 1

Location = tuple[str | int, ...]
"""Keys and indices that lead from the top of a grid file to a value."""

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_CORE_SCHEMA = [
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
]


class YamlError(ValueError):
    """Text that is not YAML 1.2.

    Attributes:
        line: line (from 1) of the problem; None if it is not at one line.
        problem: what is wrong.
    """

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.line, self.problem = line, escape_controls(problem)


class Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2 whose every refusal is a ``YAMLError``."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (typed so in types-PyYAML)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; errors of constructors name their line."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, ValueError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error

    def construct_boolean(self, node: yaml.ScalarNode) -> bool:
        """Construct a boolean, which a tag may ask for."""
        text = self.construct_scalar(node).lower()
        if text not in ("true", "false"):
            raise ValueError(f"expected true or false, got {quote(text)}")
        return text == "true"

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Construct an integer; a leading zero is refused, as 1.1 and 1.2 read it differently."""
        text = self.construct_scalar(node)
        digits = text.lstrip("+-")
        if re.fullmatch(r"0[0-9]+", digits):
            octal = f" or 0o{digits[1:]}" if re.fullmatch(r"0[0-7]+", digits) else ""
            raise ValueError(
                f"{shorten(text)} has a leading zero: write {shorten(digits.lstrip('0') or '0')}"
                f"{octal}, or quote it if it is text"
            )
        if len(digits) > 30:
            raise ValueError(f"the integer {shorten(text)} is too large")
        number = int(text, {"0o": 8, "0x": 16}.get(digits[:2], 10))
        if abs(number) > MAX_INTEGER:
            raise ValueError(f"the integer {number} is too large, the limit is {MAX_INTEGER}")
        return number

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """Construct a float."""
        return float(re.sub(r"\.(?=inf|nan)", "", self.construct_scalar(node).lower()))


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which YAML 1.1 or YAML 1.2 would read as something else."""


for _tag, _pattern, _first in _CORE_SCHEMA:
    _anchored = re.compile(rf"(?:{_pattern.pattern})\Z")
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _anchored, _first)
    # PyYAML's own rules come first, so text that they quote or leave plain does not change.
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _anchored, _first)
Loader.add_constructor("tag:yaml.org,2002:bool", Loader.construct_boolean)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)


def dump(content: object) -> str:
    """Write content as YAML with the order of its keys kept."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


class Document(NamedTuple):
    """A parsed document.

    Attributes:
        content: its Python objects; None if it is empty.
        node: its top node, in which an alias is the node that it refers to; None if it is empty.
        duplicates: keys that a mapping has twice, which YAML forbids.
    """

    content: Any
    node: yaml.Node | None
    duplicates: tuple[Location, ...]


def load(text: str) -> Document:
    """Parse a document.

    Raises:
        YamlError: if the text is not YAML, refers to itself or exceeds `MAX_VALUES`.
    """
    try:
        loader = Loader(text)
        node: yaml.Node | None = loader.get_single_node()
        if node is None:
            return Document(None, None, ())
        _count_values(node, {})
        # Construction merges the keys of `<<` into the mappings, so duplicates are found before.
        duplicates = tuple(_duplicate_keys(node))
        return Document(loader.construct_document(node), node, duplicates)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"the character {chr(error.character)!r} is not allowed") from error
    except RecursionError as error:
        raise YamlError(None, "nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or error)
        raise YamlError(mark.line + 1 if mark else None, problem) from error


def _count_values(node: yaml.Node, counted: dict[yaml.Node, int | None]) -> int:
    """Number of nodes below and including ``node``, with aliases expanded.

    Each node is visited once, so that this takes no longer than parsing the text did.
    """
    if node not in counted:
        counted[node] = None
        total = 1 + sum(_count_values(child, counted) for child in _children(node))
        if total > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} keys and values, aliases expanded"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
        counted[node] = total
    if (count := counted[node]) is None:
        message = "an alias refers to the value that it is part of"
        raise yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
    return count


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _duplicate_keys(node: yaml.Node) -> Iterator[Location]:
    """Keys that a mapping has twice, of which PyYAML silently keeps the last."""
    stack: list[tuple[Location, yaml.Node]] = [((), node)]
    visited: set[yaml.Node] = set()  # an alias leads to a node again
    while stack:
        location, current = stack.pop()
        if current in visited:
            continue
        visited.add(current)
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            # The constructor refuses keys that are not scalars.
            scalars = (item for item in current.value if isinstance(item[0], yaml.ScalarNode))
            for key, value in scalars:
                if key.value in seen:
                    yield (*location, key.value)
                seen.add(key.value)
                stack.append(((*location, key.value), value))
        elif isinstance(current, yaml.SequenceNode):
            stack.extend(((*location, i), item) for i, item in enumerate(current.value))


def format_error(filename: str, node: yaml.Node | None, location: Location, message: str) -> str:
    """Format an error as ``FILE:LINE: KEY: MESSAGE``."""
    return located(f"{filename}:{_line(node, location)}", location, message)


def located(source: str, location: Location, message: str) -> str:
    """Format an error as ``SOURCE: KEY: MESSAGE``, without the key at the top."""
    parts = (source, format_location(location), message)
    return escape_controls(": ".join(part for part in parts if part))


def _line(node: yaml.Node | None, location: Location) -> int:
    """Line (from 1) of the innermost part of ``location`` that the file has."""
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


def format_location(location: Location) -> str:
    """Format a location as ``tables[0].columns``; empty at the top."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":  # pydantic's mark of an error in the key itself
            path += f".{shorten(part)}" if path else shorten(part)
    return path
