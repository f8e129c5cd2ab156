"""The registries that find plug-ins by name.

Models, datasets and metrics are looked up among the Python entry points of three groups. The
suite's own are registered in its ``pyproject.toml`` exactly as a third party's would be. Names are
listed without importing anything; a plug-in is imported when it is first asked for. What
`hgmvae_bench.plugins.local_files` has in use is found beside the entry points.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from hgmvae_bench.plugins import local_files
from hgmvae_bench.plugins.protocols import (
    DatasetPlugin,
    MetricPlugin,
    ModelPlugin,
    ParametricModel,
    PluginError,
    UnknownNameError,
)

P = TypeVar("P")


@dataclass(frozen=True)
class RegisteredPlugin:
    """A registered plug-in, which may not have been imported yet.

    Attributes:
        owner: who registers it: a distribution, or a file or module named with ``--plugin``.
        place: where the owner has it.
        load: imports it.
    """

    owner: str
    place: str
    load: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.owner} ({self.place})"


@dataclass(frozen=True)
class Registry(Generic[P]):
    """The plug-ins of one kind, by name.

    Attributes:
        kind: what the plug-ins are, for messages.
        group: their entry point group.
        protocol: what each has to have.
        find: gives the entry points of a group (the installed distributions' by default); asked
            once, since what is installed does not change under a running program.
    """

    kind: str
    group: str
    protocol: type
    find: Callable[..., Any] = entry_points

    def entries(self) -> Mapping[str, RegisteredPlugin]:
        """Entries by name.

        Raises:
            PluginError: if two owners register one name.
        """
        return _entries(self, local_files.active_plugins())

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self.entries())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entry(self, name: str) -> RegisteredPlugin:
        """The entry called ``name``, without importing it.

        Raises:
            UnknownNameError: if none is registered under that name.
        """
        entries = self.entries()
        if name not in entries:
            advice = f" (a {self.kind} of a plug-in: install that, or name its file with --plugin)"
            raise UnknownNameError(self.kind, name, list(entries), advice)
        return entries[name]

    def __getitem__(self, name: str) -> P:
        """The plug-in called ``name``.

        Raises:
            UnknownNameError: if none is registered under that name.
            PluginError: if it cannot be imported, or lacks something.
        """
        entry = self.entry(name)
        try:
            plugin: P = entry.load()
        except Exception as error:
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner} cannot be loaded from "
                f"{entry.place}: {type(error).__name__}: {error}"
            ) from error
        if lacking := missing_members(plugin, self.protocol):
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner}, of type {type(plugin).__name__}, "
                f"lacks {', '.join(lacking)}; see hgmvae_bench.plugins.{self.protocol.__name__}"
            )
        return plugin


@functools.cache
def _entries(
    registry: Registry[Any], used: tuple[local_files.LocalPlugin, ...]
) -> Mapping[str, RegisteredPlugin]:
    entries: dict[str, RegisteredPlugin] = {}
    for name, entry in _found(registry, used):
        other = entries.get(name)
        # An editable install next to a wheel lists the same entry twice: no conflict.
        if other is not None and str(other) != str(entry):
            raise PluginError(
                f"two owners register the {registry.kind} '{name}': {other} and {entry}; "
                "do without one of them"
            )
        entries[name] = entry
    return entries


def _found(
    registry: Registry[Any], used: tuple[local_files.LocalPlugin, ...]
) -> Iterator[tuple[str, RegisteredPlugin]]:
    for point in registry.find(group=registry.group):
        yield point.name, RegisteredPlugin(_distribution(point), point.value, point.load)
    for local in used:
        for name, plugin in local.plugins().get(registry.group, {}).items():
            place = local_files.ATTRIBUTES[registry.group]
            yield name, RegisteredPlugin(local.name, place, functools.partial(_same, plugin))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _same(plugin: P) -> P:
    return plugin


def missing_members(thing: object, protocol: type) -> list[str]:
    """Public members of a protocol that ``thing`` lacks.

    Not by isinstance: a protocol looks attributes up statically, and torch keeps modules elsewhere.
    """
    members = sorted({*protocol.__annotations__, *vars(protocol)})
    return [name for name in members if not name.startswith("_") and not hasattr(thing, name)]


MODELS: Registry[ModelPlugin] = Registry("model", "hgmvae_bench.models", ModelPlugin)
DATASETS: Registry[DatasetPlugin] = Registry("dataset", "hgmvae_bench.datasets", DatasetPlugin)
METRICS: Registry[MetricPlugin] = Registry("metric", "hgmvae_bench.metrics", MetricPlugin)


def resolve_model(name: str) -> ModelPlugin:
    """The model called ``name``, which may have an argument: ``vae``, ``pythae:RAE_L2``.

    Raises:
        UnknownNameError: if no plug-in has that name.
        LookupError: if its argument names something that is not known.
        PluginError: if the plug-in cannot be imported, or lacks something.
        ValueError: if the argument cannot be used, or the plug-in takes none.
    """
    registered, colon, argument = name.partition(":")
    plugin = MODELS[registered]
    if not colon:
        return plugin
    if not isinstance(plugin, ParametricModel):
        raise ValueError(f"the model '{registered}' takes no argument, got '{name}'")
    return plugin.with_argument(argument)
