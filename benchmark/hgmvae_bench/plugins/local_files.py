"""Plug-ins in a file or module that is not installed, named with ``--plugin``.

The file or module defines mappings from names to plug-ins, called ``MODELS``, ``DATASETS`` and
``METRICS``::

    MODELS = {"free-bits": FreeBits()}

A file is read once, and its code is sent to every worker. Editing it while a grid runs has no
effect, and workers on other machines need no copy.
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

GROUP_ATTRIBUTES = {
    "hgmvae_bench.models": "MODELS",
    "hgmvae_bench.datasets": "DATASETS",
    "hgmvae_bench.metrics": "METRICS",
}
"""Name of the mapping that a module defines for each entry point group."""


class LocalPluginError(UserError, RuntimeError):
    """A ``--plugin`` that cannot be used; the message names it and what was expected."""


@dataclass(frozen=True)
class LocalPlugin:
    """A file or module of plug-ins that is not installed.

    Attributes:
        name: the file or module as the user named it.
        code: content of the file; None for a module on Python's path.
    """

    name: str
    code: str | None

    @classmethod
    def find(cls, name: str) -> LocalPlugin:
        """Read the file ``name`` if it ends in ``.py``; otherwise refer to a module.

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
        """SHA-256 (hex) of the code; None for a module."""
        return hashlib.sha256(self.code.encode()).hexdigest() if self.code is not None else None

    def plugins(self) -> Mapping[str, Mapping[str, Any]]:
        """Import the code; return its plug-ins by entry point group and name.

        Raises:
            LocalPluginError: if it cannot be imported or defines no plug-ins.
        """
        return _plugins(self)


_ACTIVE: ContextVar[tuple[LocalPlugin, ...]] = ContextVar("active_plugins", default=())


def active_plugins() -> tuple[LocalPlugin, ...]:
    """Return the files and modules that the registries search besides installed packages."""
    return _ACTIVE.get()


@contextmanager
def using_plugins(plugins: Iterable[LocalPlugin]) -> Iterator[None]:
    """Activate files and modules of plug-ins until the block ends.

    Raises:
        LocalPluginError: if one cannot be imported or defines no plug-ins.
    """
    token = activate_plugins(plugins)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def activate_plugins(plugins: Iterable[LocalPlugin]) -> Token[tuple[LocalPlugin, ...]]:
    """Activate files and modules of plug-ins for the rest of the process, as workers do.

    Raises:
        LocalPluginError: if one cannot be imported or defines no plug-ins.
    """
    active = tuple(dict.fromkeys((*active_plugins(), *plugins)))
    for plugin in active:
        plugin.plugins()
    return _ACTIVE.set(active)


# Cached, because importing the same code twice would create each class twice.
@functools.cache
def _plugins(plugin: LocalPlugin) -> Mapping[str, Mapping[str, Any]]:
    try:
        module = _import(plugin)
    except (Exception, SystemExit) as error:  # A script may call sys.exit.
        hint = ""
        if plugin.code is None and isinstance(error, ModuleNotFoundError):
            hint = "; name a module on Python's path, or a file that ends in .py"
        raise LocalPluginError(
            f"the plug-in {plugin.name} cannot be loaded: {type(error).__name__}: {error}{hint}"
        ) from error
    plugins = {}
    for group, attribute in GROUP_ATTRIBUTES.items():
        mapping = getattr(module, attribute, {})
        if not isinstance(mapping, Mapping) or not all(isinstance(name, str) for name in mapping):
            raise LocalPluginError(
                f"the plug-in {plugin.name}: {attribute} must map names to plug-ins, "
                f"got {type(mapping).__name__}"
            )
        plugins[group] = dict(mapping)
    if not any(plugins.values()):
        raise LocalPluginError(
            f"the plug-in {plugin.name} defines no plug-ins: it must define MODELS, DATASETS or "
            'METRICS, such as MODELS = {"name": plugin}'
        )
    return plugins


def _import(plugin: LocalPlugin) -> ModuleType:
    if plugin.code is None:
        return importlib.import_module(plugin.name)
    name = f"hgmvae_bench_plugin_{Path(plugin.name).stem}_{plugin.digest}"
    module = ModuleType(name)
    module.__file__ = plugin.name
    # dataclasses looks up the module of a class while it is created.
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.code, plugin.name, "exec"), vars(module))  # noqa: S102
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
