"""Plug-ins that are used without being installed: a file or a module, named with ``--plugin``.

Such a module offers what it has as mappings from a name to a plug-in, called ``MODELS``,
``DATASETS`` and ``METRICS``::

    MODELS = {"free-bits": FreeBits()}

The code of a file is read once and travels with the grid to every worker, so that a file edited
while a grid runs changes nothing, and workers on other machines need no copy of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hgmvae_bench.utils.errors import UserError

ATTRIBUTES = {
    "hgmvae_bench.models": "MODELS",
    "hgmvae_bench.datasets": "DATASETS",
    "hgmvae_bench.metrics": "METRICS",
}
"""What a module calls its mapping for each entry point group."""


class LocalPluginError(UserError, RuntimeError):
    """A ``--plugin`` that cannot be used; the message names it and says what is expected."""


@dataclass(frozen=True)
class LocalPlugin:
    """A module of plug-ins that is used without being installed.

    Attributes:
        name: the file or the module, as the user named it.
        code: what stands in the file; None for a module that Python itself finds.
    """

    name: str
    code: str | None

    @classmethod
    def find(cls, name: str) -> LocalPlugin:
        """The plugin called ``name``: a file if that ends in ``.py``, else a module.

        Raises:
            LocalPluginError: if the file cannot be read.
        """
        if not name.endswith(".py"):
            return cls(name, None)
        try:
            return cls(name, Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise LocalPluginError(f"the plug-in file {name} cannot be read: {error}") from error

    @property
    def digest(self) -> str | None:
        """SHA-256 of the code; None for a module."""
        return hashlib.sha256(self.code.encode()).hexdigest() if self.code is not None else None

    def plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """Its plug-ins by entry point group and name.

        Raises:
            LocalPluginError: if it cannot be imported, or offers no plug-ins.
        """
        return _plugins(self)


_ACTIVE: ContextVar[tuple[LocalPlugin, ...]] = ContextVar("active_plugins", default=())


def active_plugins() -> tuple[LocalPlugin, ...]:
    """The plugins that names are looked up in, beside what is installed."""
    return _ACTIVE.get()


@contextmanager
def using_plugins(plugins: Iterable[LocalPlugin]) -> Iterator[None]:
    """Look names up in these plugins too, until the block ends.

    Raises:
        LocalPluginError: if one cannot be imported, or offers no plug-ins.
    """
    token = activate_plugins(plugins)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def activate_plugins(plugins: Iterable[LocalPlugin]) -> Token[tuple[LocalPlugin, ...]]:
    """Look names up in these plugins too, from now on, as a worker process does.

    Raises:
        LocalPluginError: if one cannot be imported, or offers no plug-ins.
    """
    used = tuple(dict.fromkeys((*active_plugins(), *plugins)))
    for plugin in used:
        plugin.plugins()
    return _ACTIVE.set(used)


# Importing the same code twice would make two classes of one.
@functools.cache
def _plugins(plugin: LocalPlugin) -> Mapping[str, Mapping[str, Any]]:
    try:
        module = _import(plugin)
    except Exception as error:
        hint = ""
        if plugin.code is None and isinstance(error, ModuleNotFoundError):
            hint = "; name a module on Python's path, or a file that ends in .py"
        raise LocalPluginError(
            f"the plug-in {plugin.name} cannot be loaded: {type(error).__name__}: {error}{hint}"
        ) from error
    plugins = {}
    for group, attribute in ATTRIBUTES.items():
        offered = getattr(module, attribute, {})
        if not isinstance(offered, Mapping) or not all(isinstance(name, str) for name in offered):
            raise LocalPluginError(
                f"the plug-in {plugin.name}: {attribute} has to map names to plug-ins, "
                f"got {type(offered).__name__}"
            )
        plugins[group] = dict(offered)
    if not any(plugins.values()):
        raise LocalPluginError(
            f"the plug-in {plugin.name} offers nothing: it has to define MODELS, DATASETS or "
            'METRICS, such as MODELS = {"name": plugin}'
        )
    return plugins


def _import(plugin: LocalPlugin) -> ModuleType:
    if plugin.code is None:
        return importlib.import_module(plugin.name)
    name = f"hgmvae_bench_plugin_{Path(plugin.name).stem}_{plugin.digest}"
    module = ModuleType(name)
    module.__file__ = plugin.name
    # Dataclasses, among others, look up the module of a class that is being made.
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.code, plugin.name, "exec"), vars(module))  # noqa: S102
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
