"""Settings that replace those of a grid file, such as ``--set training.epochs=5``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from hgmvae_bench.grid import yaml12
from hgmvae_bench.grid.cells import Grid, changed_spec
from hgmvae_bench.grid.errors import GridError, find_errors, join_lines
from hgmvae_bench.grid.spec import ModelVariant, NetworkSettings, TrainingSettings
from hgmvae_bench.grid.yaml12 import Location, format_location, located
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.utils.text import quote

SECTIONS: Mapping[str, type[BaseModel]] = {"network": NetworkSettings, "training": TrainingSettings}


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts; the values are YAML, as in a grid file.

    Raises:
        GridError: if a text is no assignment, or its value is not valid YAML.
    """
    changes = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise GridError(f"expected KEY=VALUE, such as training.epochs=5, got {quote(text)}")
        try:
            document = yaml12.load(value)
        except yaml12.YamlError as error:
            raise GridError(
                f"{key}: the value {quote(value)} is not valid YAML: {error.problem}"
            ) from error
        for location in document.duplicates:
            raise GridError(located(key, location, "this key occurs twice"))
        changes[key] = document.content
    return changes


def override(grid: Grid, changes: Mapping[str, Any]) -> Grid:
    """Return a grid with other settings, which become part of its runs' keys.

    Args:
        grid: the grid.
        changes: values by key: ``training.KEY`` and ``network.KEY`` as in a grid file, and
            ``model.SETTING`` for every model of the grid that has the setting.

    Raises:
        UnknownNameError: if there is no such key or no model has the setting.
        GridError: if a value is out of range or of the wrong type.
    """
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if section == "model":
            change = _model_change(grid, name, value)
        elif section in SECTIONS and name in SECTIONS[section].model_fields:
            change = {section: {**dict(getattr(grid.full_spec, section)), name: value}}
        else:
            known = [
                f"{part}.{field}" for part in SECTIONS for field in SECTIONS[part].model_fields
            ]
            raise UnknownNameError("setting", key, [*known, "model.SETTING"])
        grid = replace(
            grid,
            spec=changed_spec(grid.spec, change),
            full_spec=changed_spec(grid.full_spec, change),
        )
    return _check_types(replace(grid, format_error=_naming_options(grid.format_error, changes)))


def _naming_options(
    format_error: Callable[[Location, str], str], changes: Iterable[str]
) -> Callable[[Location, str], str]:
    """Format errors of replaced settings with their option instead of a line of the grid's file."""
    replaced = set(changes)

    def formatted(location: Location, text: str) -> str:
        if location[:1] == ("models",) and location[2:3] == ("settings",):
            key = ".".join(["model", *map(str, location[3:])])
        else:
            key = ".".join(map(str, location))
        return f"--set {key}: {text}" if key in replaced else format_error(location, text)

    return formatted


def _model_change(grid: Grid, setting: str, value: Any) -> dict[str, Any]:
    """Variants of all models that have a setting, with its value."""
    models: dict[str, Any] = dict(grid.full_spec.models)
    names = dict.fromkeys(name for table in grid.full_spec.tables for name in table.models)
    settings: set[str] = set()
    for name in names:
        variant = models.get(name, ModelVariant())
        available = resolve_model(variant.model or name).settings
        settings |= available.keys()
        if setting in available:
            changed = {**variant.settings, setting: value}
            models[name] = {**dict(variant), "settings": changed}
    if setting not in settings:
        known = [f"model.{name}" for name in sorted(settings)]
        raise UnknownNameError(
            "setting", f"model.{setting}", known or ["none of the models has any"]
        )
    return {"models": models}


def _check_types(grid: Grid) -> Grid:
    """Check the settings of a grid and return the grid.

    Raises:
        GridError: if a setting is unknown or has another type than the model's default.
    """
    errors = list(find_errors(grid.full_spec))
    if errors:
        lines = (f"{format_location(location)}: {text}" for location, text in errors)
        raise GridError(join_lines(lines))
    return grid
