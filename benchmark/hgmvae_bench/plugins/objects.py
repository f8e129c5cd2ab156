"""Plug-in objects that a Python program passes directly, without a file or an entry point.

An object is pickled for worker processes: a class of an importable module as a reference, a class
of a script, a notebook, a test or a function body with its code (cloudpickle). Its digest enters
the provenance of records. As with plug-in files, the run key holds the name and the settings but
not the code.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import cloudpickle

from hgmvae_bench.plugins.local_files import LocalPlugin
from hgmvae_bench.plugins.protocols import (
    DatasetPlugin,
    MetricPlugin,
    ModelPlugin,
    PluginError,
)
from hgmvae_bench.plugins.registry import DATASETS, METRICS, MODELS, Registry, missing_members


@dataclass(frozen=True)
class PluginObject(LocalPlugin):
    """A model, dataset or metric object under a name.

    Attributes:
        name: ``<kind> <registered name>``, for messages and the provenance.
        group: entry point group of its kind.
        registered: the name under which it is found.
        payload: the pickled object.
        source_digest: SHA-256 of the class's source and of the object's attributes.
    """

    group: str = ""
    registered: str = ""
    payload: bytes = field(default=b"", repr=False)
    source_digest: str = ""
    value: Any = field(default=None, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the class's source and of the object's attributes."""
        return self.source_digest

    def plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the object by entry point group and name; unpickled once in a worker."""
        if self.value is None:
            try:
                value = pickle.loads(self.payload)  # noqa: S301
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"the {self.name}, passed from Python, cannot be loaded in a worker process: "
                    f"{type(error).__name__}: {error}; its module "
                    "has to be one that a new process can import"
                ) from error
            object.__setattr__(self, "value", value)
        return {self.group: {self.registered: self.value}}

    def __reduce__(self) -> tuple[Any, ...]:
        without_value = (self.name, self.code, self.group, self.registered)
        return type(self), (*without_value, self.payload, self.source_digest)


def wrap_plugins(
    models: Mapping[str, ModelPlugin] | None = None,
    datasets: Mapping[str, DatasetPlugin] | None = None,
    metrics: Mapping[str, MetricPlugin] | None = None,
) -> list[PluginObject]:
    """Wrap plug-in objects so that they can be looked up by name, here and in worker processes.

    Args:
        models: model objects by the names that grids use for them.
        datasets: dataset objects by name.
        metrics: metric objects by name.

    Raises:
        PluginError: if an object lacks a member of its protocol, or cannot be sent to a worker
            process.
    """
    kinds: Iterable[tuple[Registry[Any], Mapping[str, Any] | None]] = (
        (MODELS, models),
        (DATASETS, datasets),
        (METRICS, metrics),
    )
    return [
        _wrap(registry, name, value)
        for registry, values in kinds
        for name, value in (values or {}).items()
    ]


def _wrap(registry: Registry[Any], name: str, value: object) -> PluginObject:
    described = f"the {registry.kind} '{name}', of type {type(value).__name__},"
    if isinstance(value, type):
        raise PluginError(f"the {registry.kind} '{name}' is a class; pass an instance of it")
    if missing := missing_members(value, registry.protocol):
        raise PluginError(
            f"{described} lacks {', '.join(missing)}; "
            f"see hgmvae_bench.plugins.{registry.protocol.__name__}"
        )
    try:
        payload = _pickle(value)
        pickle.loads(payload)  # noqa: S301
        attributes = _pickle(_with_ordered_sets(getattr(value, "__dict__", None)))
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{described} cannot be sent to worker processes: {type(error).__name__}: {error}; "
            "open files, locks and generators have to be created when they are used"
        ) from error
    source = hashlib.sha256(_source(type(value)) or payload)
    source.update(attributes)
    return PluginObject(
        name=f"{registry.kind} {name}",
        code=None,
        group=registry.group,
        registered=name,
        payload=payload,
        source_digest=source.hexdigest(),
        value=value,
    )


def _with_ordered_sets(value: object) -> object:
    """Replace sets in nested containers by lists, since their order differs between processes."""
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return {key: _with_ordered_sets(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_ordered_sets(each) for each in value]
    return value


def _pickle(value: object) -> bytes:
    """Pickle a value, its class by value if a worker could not import the class's module."""
    module = sys.modules.get(type(value).__module__)
    if module is None or module.__name__ in ("__main__", "builtins") or _importable(module):
        return bytes(cloudpickle.dumps(value))
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _importable(module: ModuleType) -> bool:
    """Whether another process with the same ``sys.path`` finds a module under its name.

    Test runners and notebooks load modules that another process cannot import.
    """
    path: Sequence[str] | None = None
    name, origin = "", None
    for part in module.__name__.split("."):
        name = f"{name}.{part}".lstrip(".")
        if (spec := PathFinder.find_spec(name, path)) is None:
            return False
        path, origin = spec.submodule_search_locations, spec.origin
    return origin == getattr(module, "__file__", None)


def _source(cls: type) -> bytes | None:
    """Source code of a class; None where there is none, as in ``python -c``."""
    try:
        return inspect.getsource(cls).encode()
    except (OSError, TypeError):
        return None
