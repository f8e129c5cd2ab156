"""Registries that find plug-ins by name.

Models, datasets and metrics are Python entry points of three groups. The suite registers its own in
``pyproject.toml``, exactly as a third party does. Listing names imports nothing; a plug-in is
imported when it is first looked up. The registries also search the active files and modules of
`hgmvae_bench.plugins.local_files`.
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
        owner: the distribution, or the file or module named with ``--plugin``.
        place: the object within the owner, such as ``module:NAME``.
        load: imports the plug-in.
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
        kind: ``model``, ``dataset`` or ``metric``, for messages.
        group: entry point group.
        protocol: the members that each plug-in must have.
        find: returns the entry points of a group; by default those of installed distributions. The
            result is cached for the life of the process.
    """

    kind: str
    group: str
    protocol: type
    find: Callable[..., Any] = entry_points

    def entries(self) -> Mapping[str, RegisteredPlugin]:
        """Return the registered plug-ins by name.

        Raises:
            PluginError: if two owners register the same name.
        """
        return _entries(self, local_files.active_plugins())

    def names(self) -> list[str]:
        """Return the registered names, in the order of registration."""
        return list(self.entries())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entry(self, name: str) -> RegisteredPlugin:
        """Return the registered plug-in called ``name`` without importing it.

        Raises:
            UnknownNameError: if the name is not registered.
        """
        entries = self.entries()
        if name not in entries:
            advice = (
                f" (if a plug-in has the {self.kind}: install it, or name its file with --plugin)"
            )
            raise UnknownNameError(self.kind, name, list(entries), advice)
        return entries[name]

    def __getitem__(self, name: str) -> P:
        """Import and return the plug-in called ``name``.

        Raises:
            UnknownNameError: if the name is not registered.
            PluginError: if the plug-in cannot be imported or lacks members of the protocol.
        """
        entry = self.entry(name)
        try:
            plugin: P = entry.load()
        except (Exception, SystemExit) as error:  # A module may call sys.exit.
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner} cannot be loaded from "
                f"{entry.place}: {type(error).__name__}: {error}"
            ) from error
        if missing := missing_members(plugin, self.protocol):
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner}, of type {type(plugin).__name__}, "
                f"lacks {', '.join(missing)}; see hgmvae_bench.plugins.{self.protocol.__name__}"
            )
        return plugin


@functools.cache
def _entries(
    registry: Registry[Any], active: tuple[local_files.LocalPlugin, ...]
) -> Mapping[str, RegisteredPlugin]:
    entries: dict[str, RegisteredPlugin] = {}
    for name, entry in _find(registry, active):
        other = entries.get(name)
        # An editable install beside a wheel lists the same entry point twice.
        if other is not None and str(other) != str(entry):
            raise PluginError(
                f"two owners register the {registry.kind} '{name}': {other} and {entry}; "
                "remove one of them"
            )
        entries[name] = entry
    return entries


def _find(
    registry: Registry[Any], active: tuple[local_files.LocalPlugin, ...]
) -> Iterator[tuple[str, RegisteredPlugin]]:
    for point in registry.find(group=registry.group):
        yield point.name, RegisteredPlugin(_distribution(point), point.value, point.load)
    for local in active:
        for name, plugin in local.plugins().get(registry.group, {}).items():
            place = local_files.GROUP_ATTRIBUTES[registry.group]
            yield name, RegisteredPlugin(local.name, place, functools.partial(_identity, plugin))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _identity(plugin: P) -> P:
    return plugin


def missing_members(plugin: object, protocol: type) -> list[str]:
    """Return the public members of a protocol that an object lacks.

    isinstance does not serve here: it looks attributes up statically, but torch modules provide
    their submodules through ``__getattr__``.
    """
    members = sorted({*protocol.__annotations__, *vars(protocol)})
    return [name for name in members if not name.startswith("_") and not hasattr(plugin, name)]


MODELS: Registry[ModelPlugin] = Registry("model", "hgmvae_bench.models", ModelPlugin)
DATASETS: Registry[DatasetPlugin] = Registry("dataset", "hgmvae_bench.datasets", DatasetPlugin)
METRICS: Registry[MetricPlugin] = Registry("metric", "hgmvae_bench.metrics", MetricPlugin)


def resolve_model(name: str) -> ModelPlugin:
    """Return the model called ``name``, which may have an argument: ``vae``, ``pythae:RAE_L2``.

    Raises:
        UnknownNameError: if no plug-in has that name.
        LookupError: if the argument is an unknown name.
        PluginError: if the plug-in cannot be imported or lacks members of the protocol.
        ValueError: if the argument is invalid, or the plug-in takes none.
    """
    registered, colon, argument = name.partition(":")
    plugin = MODELS[registered]
    if not colon:
        return plugin
    if not isinstance(plugin, ParametricModel):
        raise ValueError(f"the model '{registered}' takes no argument, got '{name}'")
    return plugin.with_argument(argument)
