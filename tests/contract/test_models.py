"""Contract of every registered model, whether it is the suite's own or a third party's."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hgmvae_bench.plugins.protocols import (
    ChecksEpochs,
    HasComponents,
    HasLatentPosterior,
    HasObjectives,
    HasStages,
    ParametricModel,
    ReconstructionLoss,
)
from hgmvae_bench.plugins.registry import MODELS, resolve_model
from hgmvae_bench.training.network.encoders import Network
from vae_baselines.pythae_models import ADAPTED

LATENT_DIM = 4
EPOCHS = 10  # The suite's default, on which a model's schedules and pretraining rely.
N_IMAGES, BATCH_SIZE = 128, 64

# A plug-in that needs an argument (pythae:NAME) is not a model without one.
NAMES = [name for name in MODELS if not isinstance(MODELS[name], ParametricModel)]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Name of a registered model; all tests of one model run in a row."""
    return str(request.param)


@pytest.fixture(scope="module")
def training(name: str) -> Training:
    """Training of the model for the default number of epochs, shared by its tests."""
    return train(name)


@pytest.fixture
def trained_model(training: Training) -> Any:
    """Trained model in evaluation mode, not to be modified."""
    return training.model


@cache
def digits(channels: int = 1, size: int = 32) -> Tensor:
    """Images (N_IMAGES, channels, size, size) in [0, 1]."""
    images = torch.tensor(load_digits().images[:N_IMAGES], dtype=torch.float32).div(16)
    scale = size // 8
    images = images.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return images.unsqueeze(1).repeat(1, channels, 1, 1)


def build(
    name: str, channels: int = 1, size: int = 32, loss: ReconstructionLoss = "bce", **settings: Any
) -> Any:
    input_dim, plugin = (channels, size, size), resolve_model(name)
    return plugin.build(
        input_dim=input_dim,
        latent_dim=LATENT_DIM,
        reconstruction_loss=loss,
        network=Network(input_dim, width=4),
        settings=dict(plugin.settings) | settings,
    )


def objectives_of(model: Any) -> Mapping[str, list[Tensor]]:
    if isinstance(model, HasObjectives):
        return model.objectives()
    return {"loss": list(model.parameters())}


def scalars(output: Any) -> dict[str, float]:
    return {
        key: value.item()
        for key, value in output.items()
        if isinstance(value, Tensor) and value.ndim == 0
    }


@dataclass
class Training:
    """Outcome of `train`.

    Attributes:
        model: trained model.
        history: mean scalars of each epoch.
        without_gradient: names of parameters that had no non-zero gradient in any step.
    """

    model: Any
    history: list[dict[str, float]]
    without_gradient: set[str]


def train(name: str, seed: int = 0, epochs: int = EPOCHS, device: str = "cpu") -> Training:
    """Train on the digits, each parameter by its own objective."""
    torch.manual_seed(seed)
    model = build(name).to(device)
    model.train()
    objectives = objectives_of(model)
    optimizers = [torch.optim.AdamW(group, lr=1e-3) for group in objectives.values()]
    without_gradient = {key for key, value in model.named_parameters() if value.requires_grad}
    history = []
    for epoch in range(1, epochs + 1):
        totals: dict[str, float] = defaultdict(float)
        for batch in digits()[torch.randperm(N_IMAGES)].to(device).split(BATCH_SIZE):
            output = model({"data": batch}, epoch=epoch, dataset_size=N_IMAGES, uses_ddp=False)
            gradients = {
                key: torch.autograd.grad(output[key], group, retain_graph=True, allow_unused=True)
                for key, group in objectives.items()
            }
            for key, group in objectives.items():
                for parameter, gradient in zip(group, gradients[key], strict=True):
                    parameter.grad = gradient
            without_gradient -= {
                key
                for key, parameter in model.named_parameters()
                if parameter.grad is not None and parameter.grad.any()
            }
            for optimizer in optimizers:
                optimizer.step()
            for key, value in scalars(output).items():
                totals[key] += value / (N_IMAGES // BATCH_SIZE)
        model.update()
        history.append(dict(totals))
    model.eval()
    return Training(model, history, without_gradient)


# Training


def test_training_lowers_a_finite_loss(training: Training) -> None:
    history = training.history
    values = torch.tensor([list(epoch.values()) for epoch in history])
    assert values.isfinite().all(), history
    assert history[-1]["loss"] < history[_first_of_last_stage(training.model)]["loss"]
    assert len(history[0]) > 1, "the output must also contain the terms of the loss"


def _first_of_last_stage(model: Any) -> int:
    """Index of the epoch from which on the loss keeps its terms; 0 if they always change."""
    if not isinstance(model, HasStages):
        return 0
    stages = [model.stage(epoch) for epoch in range(1, EPOCHS + 1)]
    return stages.index(stages[-1]) if stages[-1] == stages[-2] else 0


def test_every_parameter_has_a_gradient(training: Training) -> None:
    assert not training.without_gradient


def test_equal_seeds_give_equal_histories(name: str, training: Training) -> None:
    epochs = EPOCHS - 4  # Past the stages of the suite's models.
    repeated, other = train(name, epochs=epochs), train(name, seed=1, epochs=1)
    assert repeated.history == training.history[:epochs]
    assert other.history[0] != repeated.history[0]


def test_objectives_are_in_the_output_and_share_no_parameter(name: str) -> None:
    model = build(name)
    objectives = objectives_of(model)
    assert objectives.keys() <= scalars(model({"data": digits()[:8]}, epoch=1)).keys()
    parameters = [id(parameter) for group in objectives.values() for parameter in group]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_too_few_epochs_are_rejected(name: str) -> None:
    """The default number of epochs must suffice for every model."""
    model = build(name)
    if not isinstance(model, ChecksEpochs):
        pytest.skip("the model does not check the number of epochs")
    model.check_epochs(EPOCHS)
    with pytest.raises(ValueError, match="epoch"):
        model.check_epochs(1)


# Stages and CUDA graphs


class HostReads(TorchDispatchMode):
    """Mode that counts operations that copy tensor values to Python, which block on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.n += func in reading
        return func(*args, **(kwargs or {}))


def test_a_step_of_a_stage_reads_no_values_back(name: str) -> None:
    model = build(name)
    model.train()
    if not isinstance(model, HasStages):
        pytest.skip("the model has no stages")
    for epoch in [epoch for epoch in (1, EPOCHS // 2, EPOCHS) if model.stage(epoch) is not None]:
        with HostReads() as reads:
            output = model({"data": digits()[:8]}, epoch=epoch, dataset_size=N_IMAGES)
            for key in objectives_of(model):
                output[key].backward(retain_graph=True)
        assert reads.n == 0, epoch


def steps_by_stage(model: Any) -> dict[int, list[list[float]]]:
    """Scalars and gradient norms of a step in each epoch, by stage.

    Every step has the same weights, images and random numbers.
    """
    model.train()
    start = copy.deepcopy(model.state_dict())
    objectives = objectives_of(model)
    steps = defaultdict(list)
    for epoch in range(1, EPOCHS + 1):
        stage = model.stage(epoch)
        if stage is None:
            continue
        model.load_state_dict(start)
        torch.manual_seed(0)
        output = model({"data": digits()[:8]}, epoch=epoch, dataset_size=N_IMAGES)
        norms = [
            sum(
                gradient.norm().item()
                for gradient in torch.autograd.grad(
                    output[key], parameters, retain_graph=True, allow_unused=True
                )
                if gradient is not None
            )
            for key, parameters in objectives.items()
        ]
        steps[stage].append([*scalars(output).values(), *norms])
    return steps


def test_epochs_of_a_stage_have_the_same_step(name: str) -> None:
    """A GPU replays the first step of a stage in all its epochs."""
    model = build(name)
    if not isinstance(model, HasStages):
        pytest.skip("the model has no stages")
    for steps in steps_by_stage(model).values():
        assert steps == [steps[0]] * len(steps)


@pytest.mark.parametrize(
    ("scheduled", "settings"),
    [
        ("vamp", {"linear_scheduling_steps": 4}),
        ("pythae:DisentangledBetaVAE", {"warmup_epoch": 4}),
        *((f"pythae:{name}", {}) for name in ADAPTED),
    ],
)
def test_a_schedule_starts_a_stage_with_each_change(
    scheduled: str, settings: dict[str, Any]
) -> None:
    stages = steps_by_stage(build(scheduled, **dict(resolve_model(scheduled).settings) | settings))
    if settings:
        assert len(stages) >= 4
    for steps in stages.values():
        assert steps == [steps[0]] * len(steps)


# Codes, samples and images


@pytest.mark.parametrize(
    ("channels", "size", "loss"),
    [(1, 32, "bce"), (1, 64, "mse"), (3, 32, "mse"), (3, 64, "bce")],
)
def test_outputs_have_the_shapes_of_the_images(
    name: str, channels: int, size: int, loss: ReconstructionLoss
) -> None:
    torch.manual_seed(0)
    model = build(name, channels, size, loss)
    data = digits(channels, size)[:8]
    output = model({"data": data}, epoch=1, dataset_size=8, uses_ddp=False)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    code = model.eval().latent_code(data)
    assert code.shape == (8, LATENT_DIM)
    images = model.decoder(code)["reconstruction"]
    assert images.shape == data.shape
    assert 0 <= images.min() <= images.max() <= 1


@torch.no_grad()
def test_codes_are_deterministic_and_depend_on_the_image(trained_model: Any) -> None:
    first, second = trained_model.latent_code(digits()), trained_model.latent_code(digits())
    assert first.shape == (N_IMAGES, LATENT_DIM)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert first.std(dim=0).max() > 1e-3


@torch.no_grad()
def test_a_batch_of_one_gives_the_same_code(trained_model: Any) -> None:
    alone = trained_model.latent_code(digits()[:1])
    of_batch = trained_model.latent_code(digits()[:8])
    output = trained_model(
        {"data": digits()[:1]}, epoch=EPOCHS, dataset_size=N_IMAGES, uses_ddp=False
    )
    assert alone.shape == (1, LATENT_DIM)
    torch.testing.assert_close(alone, of_batch[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.tensor(value).isfinite() for value in scalars(output).values())


def draw(model: Any, seed: int = 0, n_samples: int = 64) -> Tensor:
    torch.manual_seed(seed)
    samples: Tensor = model.sample_latent(n_samples)
    return samples


def evaluated_loss(model: Any) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        output = model({"data": digits()}, epoch=EPOCHS, dataset_size=N_IMAGES, uses_ddp=False)
    return float(output.loss)


def test_prior_samples_follow_torchs_global_generator(trained_model: Any) -> None:
    samples = draw(trained_model)
    assert samples.shape == (64, LATENT_DIM)
    assert samples.isfinite().all()
    assert not samples.requires_grad
    assert torch.equal(samples, draw(trained_model))
    assert not torch.equal(samples, draw(trained_model, seed=1))
    images = trained_model.decoder(samples)["reconstruction"]
    assert images.shape == (64, 1, 32, 32)


def test_a_model_loaded_from_safetensors_is_bitwise_equal(name: str, trained_model: Any) -> None:
    torch.manual_seed(1)
    loaded = build(name)
    loaded.load_state_dict(load(save(trained_model.state_dict())))
    loaded.eval()
    for key, value in trained_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(loaded.latent_code(digits()), trained_model.latent_code(digits()))
    assert torch.equal(draw(loaded), draw(trained_model))
    assert evaluated_loss(loaded) == evaluated_loss(trained_model)


# Optional outputs for the metrics of collapse

# The suite's models by the outputs that they must have. Models of third parties may have either.
GAUSSIAN = {
    "vae", "beta-vae", "beta-tc-vae", "factor-vae", "info-vae", "vamp", "gmvae", "vade",
    "hgmvae-g", "hgmvae-u", "hgmvae-g-nofisher", "hgmvae-u-nofisher",
    "hgmvae-u-single", "hgmvae-u-single-nofisher",
}  # fmt: skip
MIXTURES = {name for name in GAUSSIAN if name.startswith("hgmvae")} | {"vamp", "gmvae", "vade"}
POINTS = {"wae-imq", "wae-rbf", "swae"}


@torch.no_grad()
def test_the_posterior_mean_is_the_code(name: str, trained_model: Any) -> None:
    if name in GAUSSIAN | POINTS:
        assert isinstance(trained_model, HasLatentPosterior) == (name in GAUSSIAN)
    if not isinstance(trained_model, HasLatentPosterior):
        pytest.skip("the model has no Gaussian posterior")
    mean, log_var = trained_model.latent_posterior(digits())
    assert mean.shape == log_var.shape == (N_IMAGES, LATENT_DIM)
    torch.testing.assert_close(mean, trained_model.latent_code(digits()))
    assert log_var.isfinite().all()
    repeated = trained_model.latent_posterior(digits())
    assert torch.equal(mean, repeated[0])
    assert torch.equal(log_var, repeated[1])


@torch.no_grad()
def test_the_posterior_has_the_moments_of_the_models_own_draws(
    name: str, trained_model: Any
) -> None:
    if name not in GAUSSIAN:
        pytest.skip("not one of the suite's models with a Gaussian posterior")
    torch.manual_seed(0)
    n_images, n_draws = 2, 2500
    data = digits()[:n_images]
    # Batches of 200, because some objectives compare all pairs of a batch.
    batch = data.repeat(100, 1, 1, 1)
    outputs = [
        trained_model({"data": batch}, epoch=EPOCHS, dataset_size=N_IMAGES)
        for _ in range(n_draws // 100)
    ]
    draws = torch.cat([output.z for output in outputs]).unflatten(0, (n_draws, n_images))
    mean, log_var = trained_model.latent_posterior(data)
    deviation = (0.5 * log_var).exp()
    # Four standard errors of a mean and, for excess kurtosis up to 4, of a standard deviation.
    assert ((draws.mean(dim=0) - mean).abs() < 4 * deviation / n_draws**0.5).all()
    ratio = draws.std(dim=0) / deviation
    assert ((ratio - 1).abs() < 4 * (6 / 4 / n_draws) ** 0.5).all()


@torch.no_grad()
def test_component_probabilities_sum_to_one(name: str, trained_model: Any) -> None:
    if name in GAUSSIAN | POINTS:
        assert isinstance(trained_model, HasComponents) == (name in MIXTURES)
    if not isinstance(trained_model, HasComponents):
        pytest.skip("the model has no components")
    probabilities = trained_model.component_probabilities(digits())
    assert probabilities.shape[0] == N_IMAGES
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(N_IMAGES))
    torch.testing.assert_close(
        trained_model.component_probabilities(digits()[:8]), probabilities[:8]
    )
    if name in MIXTURES:
        assert probabilities.shape[1] == (50 if name == "vamp" else 10)
        assert not torch.allclose(probabilities, probabilities[:1].expand_as(probabilities))


# Settings and devices


def test_settings_are_json_values_and_checked_by_name_and_value(name: str) -> None:
    plugin = MODELS[name]
    settings = dict(plugin.settings)
    assert json.loads(json.dumps(settings)) == settings
    assert plugin.title
    assert plugin.reference
    build(name, **settings)
    with pytest.raises(ValueError, match="no_such_setting"):
        build(name, no_such_setting=1)
    for setting in settings:
        with pytest.raises(ValueError, match=setting):
            build(name, **{setting: "no such value"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_codes_on_a_gpu_agree_with_a_cpu(name: str) -> None:
    model = train(name, device="cuda").model
    assert model.sample_latent(4).is_cuda
    data = digits()[:8]
    with torch.no_grad():
        on_gpu = model.latent_code(data.cuda()).cpu()
        on_cpu = model.cpu().latent_code(data)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
