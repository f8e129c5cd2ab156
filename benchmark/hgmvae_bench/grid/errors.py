"""Faults of a grid: names that no plug-in answers to, settings that a model does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid.spec import GridSpec
from hgmvae_bench.plugins.protocols import PluginError, Setting, UnknownNameError
from hgmvae_bench.plugins.registry import METRICS, resolve_model
from hgmvae_bench.utils.errors import UserError

Location = tuple[str | int, ...]
"""Keys and places from the top of a grid file to a value in it."""

LocatedError = tuple[Location, str]
"""Where something is wrong, and what."""


class GridError(UserError, ValueError):
    """A grid file that cannot be used; one line per fault: file, line, key, what was expected."""


EXPECTED = {
    "dict_type": "expected keys with values",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "int_type": "expected an integer",
    "list_type": "expected a list",
    "string_pattern_mismatch": (
        "expected letters, digits, spaces and any of . _ + -, a letter or digit first"
    ),
    "string_too_short": "expected text",
    "string_type": "expected text",
    "too_short": "expected at least one entry",
}
"""What pydantic's kinds of faults mean to a reader; of the others it speaks plainly itself."""


def describe_validation_error(fault: Any) -> str:
    """One of pydantic's faults in plain words: what was expected, and what was got."""
    kind, message = fault["type"], fault["msg"]
    if kind == "value_error":
        return str(fault["ctx"]["error"])  # whole sentences of our own
    got = "nothing" if fault["input"] is None else repr(fault["input"])
    return f"{EXPECTED.get(kind, message[0].lower() + message[1:])}, got {got}"


def find_errors(spec: GridSpec) -> Iterator[LocatedError]:
    """Names that no plug-in answers to, and settings that a model does not have."""
    for key, dataset in spec.datasets.items():
        yield from check_name(resolve_dataset, dataset.dataset or key, ("datasets", key))
    for key, variant in spec.models.items():
        name = variant.model or key
        faults = list(check_name(resolve_model, name, ("models", key)))
        yield from faults
        if not faults:
            defaults = resolve_model(name).settings
            for setting, value in variant.settings.items():
                location = ("models", key, "settings", setting)
                if setting not in defaults:
                    yield (
                        location,
                        str(UnknownNameError(f"setting of {name}", setting, list(defaults))),
                    )
                elif not _same_kind(value, defaults[setting]):
                    yield (
                        location,
                        (f"expected a value like the default {defaults[setting]!r}, got {value!r}"),
                    )
    for i, metric in enumerate(spec.metrics):
        yield from _lookup(METRICS, metric, ("metrics", i))
    names = [table.name for table in spec.tables]
    for t, table in enumerate(spec.tables):
        if table.name in names[:t]:
            yield ("tables", t, "name"), f"a second table is called '{table.name}'"
        for i, name in enumerate(table.datasets):
            if name not in spec.datasets:
                yield from check_name(resolve_dataset, name, ("tables", t, "datasets", i))
        for i, name in enumerate(table.models):
            if name not in spec.models:
                yield from check_name(resolve_model, name, ("tables", t, "models", i))
        for i, name in enumerate(table.metrics):
            yield from _lookup(METRICS, name, ("tables", t, "metrics", i))


def _lookup(registry: Any, name: str, location: Location) -> Iterator[LocatedError]:
    try:
        registry.entry(name)
    except UnknownNameError as error:
        yield location, str(error)


def check_name(
    resolve: Callable[[str], object], name: str, location: Location = ()
) -> Iterator[LocatedError]:
    """What ``resolve`` has against a name; nothing if it finds what the name means."""
    try:
        resolve(name)
    except (LookupError, PluginError, ValueError) as error:
        yield location, str(error)


def _same_kind(value: Setting, default: Setting) -> bool:
    """Whether a setting's value is of its default's type (an int serves as a float)."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
