"""Errors in grid files: unknown names and settings, and invalid values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid.spec import GridSpec, TableSpec
from hgmvae_bench.grid.yaml12 import Location
from hgmvae_bench.plugins.protocols import PluginError, Setting, UnknownNameError
from hgmvae_bench.plugins.registry import METRICS, resolve_model
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import first_few, quote

LocatedError = tuple[Location, str]
"""Location of an error in a grid file, and its message."""

MAX_LINES = 20
"""Maximum number of errors that a message lists."""

MAX_RUNS = 2_000_000
"""Maximum number of runs of a grid; those of a cell in several tables count several times."""


class GridError(UserError, ValueError):
    """A grid file that cannot be used; a line per error: file, line, key and what was expected."""


EXPECTED = {
    "dict_type": "expected keys with values",
    "finite_number": "expected a finite number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "expected a number above {gt:g}",
    "greater_than_equal": "expected at least {ge:g}",
    "int_type": "expected an integer",
    "less_than_equal": "expected at most {le:,}",
    "list_type": "expected a list",
    "string_pattern_mismatch": (
        "expected letters, digits, spaces and any of . _ + -, a letter or digit first"
    ),
    "string_too_long": "expected at most {max_length:,} characters",
    "string_too_short": "expected text",
    "string_type": "expected text",
    "too_short": "expected at least one entry",
}
"""Messages for pydantic's types of errors; its own messages serve for the others."""


def describe_validation_error(error: Any) -> str:
    """Describe one of pydantic's errors: what was expected, and the value."""
    kind, message = error["type"], error["msg"]
    if kind == "value_error":
        return str(error["ctx"]["error"])  # raised by a validator of the suite
    if kind in EXPECTED:
        message = EXPECTED[kind].format_map(error.get("ctx", {}))
    else:
        message = message[0].lower() + message[1:]
    value = "nothing" if error["input"] is None else quote(error["input"])
    return f"{message}, got {value}"


def describe_spec_error(error: Any) -> str:
    """Describe one of pydantic's errors in a grid, with the keys that it may have."""
    kind, location = error["type"], error["loc"]
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        return str(UnknownNameError("key", str(location[-1]), _keys(location[:-1])))
    if kind == "model_type":
        error = {**error, "msg": f"expected keys with values ({', '.join(_keys(location))})"}
    return describe_validation_error(error)


def _keys(location: Location) -> list[str]:
    """Keys that a section of a grid may have."""
    section: Any = GridSpec
    if location:
        annotation = GridSpec.model_fields[str(location[0])].annotation
        *_, section = get_args(annotation) or (annotation,)
    return list(section.model_fields)


def join_lines(lines: Iterable[str]) -> str:
    """Join the messages of errors, each once; the first `MAX_LINES` and the number of others."""
    return "\n".join(first_few(list(dict.fromkeys(lines)), MAX_LINES, "errors"))


def find_errors(spec: GridSpec) -> Iterator[LocatedError]:
    """Find errors that no single value shows: unknown names and settings, and too large grids."""
    runs = sum(len(t.datasets) * len(t.models) * len(t.latent_dims) for t in spec.tables)
    if (runs := runs * spec.seeds) > MAX_RUNS:
        yield ("tables",), f"the grid has {runs:,} runs, the limit is {MAX_RUNS:,}"
        return
    for key, dataset in spec.datasets.items():
        yield from check_name(resolve_dataset, dataset.dataset or key, ("datasets", key))
    for key, variant in spec.models.items():
        yield from _check_settings(variant.model or key, variant.settings, ("models", key))
    yield from _check_metrics(spec.metrics, ("metrics",))
    names: set[str] = set()
    for i, table in enumerate(spec.tables):
        if table.name in names:
            yield ("tables", i, "name"), f"a second table is called '{table.name}'"
        names.add(table.name)
        yield from _check_table(spec, table, ("tables", i))


def _check_settings(
    model: str, settings: dict[str, Setting], at: Location
) -> Iterator[LocatedError]:
    """Check a model's name, and the names and types of its settings."""
    if errors := list(check_name(resolve_model, model, at)):
        yield from errors
        return
    defaults = resolve_model(model).settings
    for name, value in settings.items():
        if name not in defaults:
            message = str(UnknownNameError(f"setting of {model}", name, list(defaults)))
            yield (*at, "settings", name), message
        elif not _same_type(value, defaults[name]):
            message = f"expected a value like the default {defaults[name]!r}, got {quote(value)}"
            yield (*at, "settings", name), message


def _check_table(spec: GridSpec, table: TableSpec, at: Location) -> Iterator[LocatedError]:
    for i, name in enumerate(table.datasets):
        if name not in spec.datasets:
            yield from check_name(resolve_dataset, name, (*at, "datasets", i))
    for i, name in enumerate(table.models):
        if name not in spec.models:
            yield from check_name(resolve_model, name, (*at, "models", i))
    yield from _check_metrics(table.metrics, (*at, "metrics"))


def _check_metrics(names: list[str], at: Location) -> Iterator[LocatedError]:
    for i, name in enumerate(names):
        # Metrics are not imported, because they need libraries that the grid may not need.
        yield from check_name(METRICS.entry, name, (*at, i))


def distinct_metrics(names: Iterable[str]) -> list[str]:
    """Return the names of metrics that a user has chosen, each once.

    Raises:
        GridError: if there are none.
    """
    if distinct := list(dict.fromkeys(names)):
        return distinct
    raise GridError("metrics: expected the name of at least one metric, got none")


def check_name(
    resolve: Callable[[str], object], name: str, location: Location = ()
) -> Iterator[LocatedError]:
    """Yield the error that ``resolve`` raises for a name, if it does."""
    try:
        resolve(name)
    except (LookupError, PluginError, ValueError) as error:
        yield location, str(error)


def _same_type(value: Setting, default: Setting) -> bool:
    """Whether a setting's value has the type of its default; an int is a valid float."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
