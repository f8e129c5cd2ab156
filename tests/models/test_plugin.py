"""The plug-ins: their settings are those of the config, and they do not import torch."""

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from pythae.models.base import BaseAEConfig

import hgmvae
from hgmvae import (
    HGMVAE_G,
    HGMVAE_G_NOFISHER,
    HGMVAE_U,
    HGMVAE_U_NOFISHER,
    HGMVAE_U_SINGLE,
    HGMVAE_U_SINGLE_NOFISHER,
    HGMVAEConfig,
)
from hgmvae_bench.training.network.encoders import Network

PLUGINS = {
    "G": (HGMVAE_G, "gaussian", True),
    "U": (HGMVAE_U, "uniform", True),
    "G without Fisher": (HGMVAE_G_NOFISHER, "gaussian", False),
    "U without Fisher": (HGMVAE_U_NOFISHER, "uniform", False),
    "U single": (HGMVAE_U_SINGLE, "uniform", True),
    "U single without Fisher": (HGMVAE_U_SINGLE_NOFISHER, "uniform", False),
}
SINGLE = {"posterior_components": 1}
GIVEN_BY_THE_BENCHMARK = {"reconstruction_loss", "coefficient_prior"}

every_plugin = pytest.mark.parametrize(
    ("plugin", "coefficient_prior", "has_fisher"), PLUGINS.values(), ids=PLUGINS
)


def build(plugin, **settings):
    return plugin.build(
        input_dim=(1, 32, 32),
        latent_dim=2,
        reconstruction_loss="bce",
        network=Network((1, 32, 32), width=2),
        settings=settings,
    )


@every_plugin
def test_settings_are_the_configs_own_fields(plugin, coefficient_prior, has_fisher):
    inherited = {field.name for field in fields(BaseAEConfig)} | {"name"}
    own = {field.name: field.default for field in fields(HGMVAEConfig)}
    expected = {
        name: default
        for name, default in own.items()
        if name not in inherited | GIVEN_BY_THE_BENCHMARK
    }
    if not has_fisher:
        expected["fisher_weight"] = 0.0
    if plugin in (HGMVAE_U_SINGLE, HGMVAE_U_SINGLE_NOFISHER):
        expected.update(SINGLE)
    assert plugin.settings == expected
    assert plugin.added_settings <= expected.keys()
    assert all(expected[name] is None for name in plugin.added_settings)


@every_plugin
def test_build_follows_the_settings(plugin, coefficient_prior, has_fisher):
    model = build(plugin, n_components=3)
    config = model.model_config
    assert config.coefficient_prior == coefficient_prior
    assert config.reconstruction_loss == "bce"
    assert config.n_components == 3
    assert (config.fisher_weight > 0) == has_fisher
    assert model({"data": torch.rand(2, 1, 32, 32)}).z.shape == (2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fischer": "none"}, "fischer"), ({"fisher": "raw"}, "fisher"), ({"n_components": 0}, "0")],
)
def test_build_refuses_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(HGMVAE_U, **settings)


def test_import_needs_no_torch():
    code = "import sys, hgmvae; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_export_can_be_imported():
    assert all(getattr(hgmvae, name) is not None for name in hgmvae.__all__)
    with pytest.raises(AttributeError, match="HGMVEA"):
        _ = hgmvae.HGMVEA
