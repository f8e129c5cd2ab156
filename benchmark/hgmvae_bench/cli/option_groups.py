"""Groups of options that several commands share, and the decorator that gives them to a command.

A group is a dataclass whose fields are options. A command that takes a group as a parameter has the
group's options on the command line and receives their values as one object.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeGuard, get_type_hints

from hgmvae_bench.cli.options import (
    Data,
    Datasets,
    DeviceOption,
    ExecutorName,
    GridToRun,
    LatentDims,
    Models,
    Plugins,
    PrecisionOption,
    RayAddress,
    RayCpus,
    RayGpus,
    Results,
    Seeds,
    Settings,
    TimeLimit,
    Track,
    Weights,
    Workers,
)
from hgmvae_bench.utils.bounds import DEFAULT_RESULTS


@dataclass(frozen=True)
class GridOptions:
    """A grid to run, with options that filter it or replace its settings."""

    grid: GridToRun
    dataset: Datasets = None
    model: Models = None
    latent_dim: LatentDims = None
    seeds: Seeds = None
    precision: PrecisionOption = None
    settings: Settings = None


@dataclass(frozen=True)
class PlaceOptions:
    """Folders, plug-ins and the device of runs."""

    results: Results = DEFAULT_RESULTS
    data: Data = None
    weights: Weights = None
    plugins: Plugins = None
    device: DeviceOption = "auto"
    workers: Workers = None


@dataclass(frozen=True)
class ExecutorOptions:
    """The executor of runs, their time limit and trackers."""

    executor: ExecutorName = "local"
    ray_address: RayAddress = None
    ray_cpus: RayCpus = 1
    ray_gpus: RayGpus = None
    time_limit: TimeLimit = None
    track: Track = None


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter of a command that is a group by the options of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            options = {each.name: values.pop(each.name) for each in fields(group)}
            values[name] = group(**options)
        command(**values)

    parameters = list(_parameters(command, hints))
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    return expanded


def _is_group(hint: Any) -> TypeGuard[type[Any]]:
    return isinstance(hint, type) and is_dataclass(hint)


def _parameters(command: Callable[..., None], hints: dict[str, Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a command, with the fields of the groups in place of the groups."""
    for name, parameter in inspect.signature(command).parameters.items():
        if not _is_group(hints[name]):
            yield parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])
            continue
        of_group = get_type_hints(hints[name], include_extras=True)
        for each in fields(hints[name]):
            default = parameter.empty if each.default is MISSING else each.default
            annotation = of_group[each.name]
            yield inspect.Parameter(
                each.name, parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
