from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest
from pythae.models import BaseAEConfig

import vae_baselines
from vae_baselines import Baseline

PLUGINS = {
    name: plugin for name, plugin in vars(vae_baselines).items() if isinstance(plugin, Baseline)
}
every_plugin = pytest.mark.parametrize("plugin", PLUGINS.values(), ids=PLUGINS)


def test_plugins_are_imported_without_torch() -> None:
    code = "import sys, vae_baselines; print(vae_baselines.VAE.title, sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"vae_baselines.plugin" in loaded
    assert not [name for name in (b"'torch'", b"'pythae'", b"'numpy'") if name in loaded]


@every_plugin
def test_settings_are_those_of_the_config_with_its_defaults(plugin: Baseline) -> None:
    module, name = plugin.model.split(":")
    config_class = getattr(import_module(module), name).config_class
    config = config_class(**plugin.fixed)
    own = (
        {field.name for field in fields(config_class)}
        - {field.name for field in fields(BaseAEConfig)}
        - {"reconstruction_loss"}
    )
    assert plugin.settings.keys() | plugin.fixed.keys() == own
    assert not plugin.settings.keys() & plugin.fixed.keys()
    for setting, value in plugin.settings.items():
        assert getattr(config, setting) == value, setting


@every_plugin
def test_added_settings_are_settings(plugin: Baseline) -> None:
    assert plugin.added_settings <= plugin.settings.keys()


def test_an_unknown_setting_lists_the_nearest(build) -> None:
    with pytest.raises(ValueError, match="β-VAE has no setting 'betta'; known: beta"):
        build(vae_baselines.BETA_VAE, betta=2.0)
    with pytest.raises(ValueError, match="no setting 'kernel_choice'"):
        build(vae_baselines.WAE_IMQ, kernel_choice="rbf")
    with pytest.raises(ValueError, match="VAE has no setting 'beta'; it has none"):
        build(vae_baselines.VAE, beta=1.0)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("BETA_VAE", "beta", -1.0),
        ("BETA_VAE", "beta", float("nan")),
        ("WAE_IMQ", "kernel_bandwidth", 0.0),
        ("WAE_IMQ", "scales", []),
        ("SWAE", "power", 0.5),
        ("SWAE", "n_projections", 0),
        ("GMVAE", "n_components", 0),
        ("VADE", "pretrain_epochs", 0),
        ("VADE", "mixture_fits", 0),
        ("VADE", "mixture_start", "random"),
        ("VADE", "fisher_weight", -1.0),
        ("VADE", "fisher_delay", -1),
        ("VAMP", "linear_scheduling_steps", -1),
    ],
)
def test_an_error_for_a_value_out_of_range_names_the_setting(build, name, setting, value) -> None:
    with pytest.raises(ValueError, match=setting):
        build(PLUGINS[name], **{setting: value})
