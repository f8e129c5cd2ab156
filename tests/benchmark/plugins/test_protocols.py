"""Optional hooks of models: which objects isinstance finds them on."""

from types import MethodType

import pytest
import torch
from torch import nn

from hgmvae_bench.plugins.protocols import (
    ChecksEpochs,
    HasComponents,
    HasLatentPosterior,
    HasObjectives,
    HasPosteriorDensity,
    HasPriorDensity,
    HasStages,
)
from hgmvae_bench.plugins.registry import resolve_model
from hgmvae_bench.training.network.encoders import Network

HOOKS = {
    "objectives": HasObjectives,
    "stage": HasStages,
    "check_epochs": ChecksEpochs,
    "latent_posterior": HasLatentPosterior,
    "sample_posterior": HasPosteriorDensity,
    "prior_log_density": HasPriorDensity,
    "component_probabilities": HasComponents,
}

GAUSSIAN = {"latent_posterior", "prior_log_density", "stage"}
"""Hooks of every model with a Gaussian posterior."""


@pytest.mark.parametrize(("method", "hook"), HOOKS.items())
def test_a_hook_is_a_method_or_a_callable_on_the_instance(method, hook):
    def value(self, *arguments):
        return 7

    of_the_class = type("Model", (nn.Module,), {method: value})()
    of_the_instance = nn.Linear(1, 1)
    setattr(of_the_instance, method, MethodType(value, of_the_instance))
    for model in (of_the_class, of_the_instance):
        assert isinstance(model, hook)
        assert getattr(model, method)() == 7


@pytest.mark.parametrize(("method", "hook"), HOOKS.items())
def test_a_hook_that_is_missing_or_none_is_no_hook(method, hook):
    without = nn.Linear(1, 1)
    switched_off = type("Model", (nn.Module,), {method: None})()
    assert not isinstance(without, hook)
    assert not isinstance(switched_off, hook)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vae", GAUSSIAN),
        ("swae", {"stage"}),
        ("gmvae", GAUSSIAN | {"sample_posterior", "component_probabilities"}),
        ("factor-vae", GAUSSIAN | {"objectives"}),
        ("vade", GAUSSIAN | {"component_probabilities", "check_epochs"}),
        ("hgmvae-u", GAUSSIAN | {"component_probabilities", "check_epochs"}),
        ("pythae:Adversarial_AE", GAUSSIAN | {"objectives"}),
        ("pythae:RAE_L2", {"stage"}),
        ("pythae:VAE_IAF", {"sample_posterior", "prior_log_density", "stage"}),
    ],
)
def test_models_have_the_hooks_that_their_classes_define(name, expected):
    plugin = resolve_model(name)
    with torch.random.fork_rng():
        model = plugin.build(
            input_dim=(1, 32, 32),
            latent_dim=2,
            reconstruction_loss="bce",
            network=Network((1, 32, 32), width=2),
            settings=plugin.settings,
        )
    assert {method for method, hook in HOOKS.items() if isinstance(model, hook)} == expected
    assert expected == {method for method in HOOKS if hasattr(model, method)}
