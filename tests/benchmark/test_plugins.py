from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from hgmvae_bench.plugins import MODELS, PluginError, Registry, UnknownNameError


class Entry(EntryPoint):
    """An entry point of a distribution that is not installed."""

    def __new__(cls, name, value, owner):
        return super().__new__(cls)

    def __init__(self, name, value, owner):
        super().__init__(name, value, "group")
        vars(self)["dist"] = SimpleNamespace(name=owner)


def registry(*entries):
    return Registry("model", "group", find=lambda group: entries)


def test_a_duplicate_name_names_both_owners():
    models = registry(Entry("vae", "ours:VAE", "ours"), Entry("vae", "theirs:VAE", "theirs"))
    with pytest.raises(PluginError, match=r"'vae': ours \(ours:VAE\) and theirs \(theirs:VAE\)"):
        models.names()


def test_the_same_entry_seen_twice_is_no_duplicate():
    assert registry(Entry("vae", "a:V", "a"), Entry("vae", "a:V", "a")).names() == ["vae"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model 'betavae'; did you mean beta-vae"):
        MODELS["betavae"]


def test_a_plugin_that_cannot_be_imported_names_its_owner():
    models = registry(Entry("broken", "no_such_module:MODEL", "theirs"))
    with pytest.raises(PluginError, match=r"'broken' of theirs .* No module named"):
        models["broken"]
