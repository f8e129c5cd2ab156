"""The baselines under pythae's own pipeline, and pythae's other models."""

from __future__ import annotations

import pytest
import pythae.models
import torch
from pythae.pipelines import TrainingPipeline
from pythae.trainers import AdversarialTrainerConfig, BaseTrainerConfig

import vae_baselines
from vae_baselines import PYTHAE, Baseline
from vae_baselines.pythae_models import ADAPTED, REFUSED

PLUGINS = {
    name: plugin for name, plugin in vars(vae_baselines).items() if isinstance(plugin, Baseline)
}
TRAINERS = {"FACTOR_VAE": AdversarialTrainerConfig}
TRAINING = {
    "num_epochs": 1,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "no_cuda": True,
}


@pytest.mark.parametrize("name", PLUGINS)
def test_trains_under_pythaes_pipeline(build, digits, tmp_path, name) -> None:
    model = build(PLUGINS[name])
    config = TRAINERS.get(name, BaseTrainerConfig)(output_dir=str(tmp_path), **TRAINING)
    TrainingPipeline(model=model, training_config=config)(digits, eval_data=digits[:33])
    (saved,) = tmp_path.glob("*/final_model/model.pt")
    state = torch.load(saved, weights_only=True)["model_state_dict"]
    copy = build(PLUGINS[name])
    before = copy.eval().latent_code(digits)
    copy.load_state_dict(state)
    assert not torch.equal(copy.eval().latent_code(digits), before)


def test_vade_goes_through_both_phases_under_pythaes_pipeline(build, digits, tmp_path) -> None:
    model = build(vae_baselines.VADE, pretrain_epochs=1)
    config = BaseTrainerConfig(output_dir=str(tmp_path), **{**TRAINING, "num_epochs": 2})
    TrainingPipeline(model=model, training_config=config)(digits)
    assert model.fitted


def test_every_model_of_pythae_is_adapted_or_refused() -> None:
    models = {name for name in pythae.models.__all__ if not name.lower().endswith("config")}
    assert models - {"AutoModel", "BaseAE"} == ADAPTED.keys() | REFUSED.keys()
    assert not ADAPTED.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", ADAPTED)
def test_other_models_of_pythae(build, digits, name) -> None:
    plugin = PYTHAE.with_argument(name)
    model = build(plugin, **plugin.settings)
    output = model({"data": digits[:8]}, epoch=1, dataset_size=64, uses_ddp=False)
    objectives = (
        model.objectives() if hasattr(model, "objectives") else {"loss": list(model.parameters())}
    )
    for key, followers in objectives.items():
        gradients = torch.autograd.grad(output[key], followers, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
    model.eval()
    assert torch.equal(model.latent_code(digits), model.latent_code(digits))
    assert model.latent_code(digits[:1]).shape == model.sample_latent(1).shape == (1, 4)


def test_rae_l2_penalty_has_the_gradient_of_pythaes_weight_decay(build, digits) -> None:
    plain, decayed = (
        build(PYTHAE.with_argument("RAE_L2"), reg_weight=weight) for weight in (0.0, 0.5)
    )
    for model in (plain, decayed):
        model({"data": digits}).loss.backward()
    for ours, theirs in zip(decayed.decoder.parameters(), plain.decoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad + 0.5 * theirs)


def test_settings_of_other_models_are_pythaes() -> None:
    assert PYTHAE.with_argument("RAE_L2").settings == {"embedding_weight": 1e-4, "reg_weight": 1e-7}
    assert PYTHAE.with_argument("AE").settings == {}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_model_has_a_reason(name) -> None:
    with pytest.raises(ValueError, match=f"pythae's {name} cannot be run as 'pythae:{name}': it"):
        PYTHAE.with_argument(name)


def test_an_unknown_model_lists_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"'RAE_L3'.*did you mean RAE_L2"):
        PYTHAE.with_argument("RAE_L3")
    with pytest.raises(LookupError, match="known: AE, Adversarial_AE"):
        PYTHAE.with_argument("xyz123")
