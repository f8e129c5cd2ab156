"""What the suite relies on in every registered model, ours and third parties' alike."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hgmvae_bench.plugins.protocols import ParametricModel, ReconstructionLoss
from hgmvae_bench.plugins.registry import MODELS, resolve_model
from hgmvae_bench.training.network.encoders import Network
from vae_baselines.pythae_models import ADAPTED

LATENT_DIM = 4
EPOCHS = 10  # the suite's default, which schedules and pretraining inside a model count on
N_IMAGES, BATCH = 128, 32

# A plug-in that needs an argument (pythae:NAME) is no model without one.
NAMES = [name for name in MODELS if not isinstance(MODELS[name], ParametricModel)]
# Model by model, so that of pytest's processes one has trained it and not each.
every_model = pytest.mark.parametrize("name", NAMES, scope="module")


@cache
def digits(channels: int = 1, size: int = 32) -> Tensor:
    """Real images (N_IMAGES, channels, size, size) in [0, 1]."""
    images = torch.tensor(load_digits().images[:N_IMAGES], dtype=torch.float32).div(16)
    scale = size // 8
    images = images.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return images.unsqueeze(1).repeat(1, channels, 1, 1)


def build(
    name: str, channels: int = 1, size: int = 32, loss: ReconstructionLoss = "bce", **settings: Any
) -> Any:
    input_dim = (channels, size, size)
    return MODELS[name].build(
        input_dim=input_dim,
        latent_dim=LATENT_DIM,
        reconstruction_loss=loss,
        network=Network(input_dim, width=4),
        settings=settings,
    )


@dataclass
class Training:
    model: Any
    history: list[dict[str, float]]
    unreached: set[str]


def train(name: str, seed: int = 0, epochs: int = EPOCHS, device: str = "cpu") -> Training:
    """Train on the digits, each parameter following the loss that the model names for it."""
    torch.manual_seed(seed)
    model = build(name).to(device)
    model.train()
    objectives: dict[str, list[nn.Parameter]] = (
        model.objectives() if hasattr(model, "objectives") else {"loss": list(model.parameters())}
    )
    optimisers = {key: torch.optim.AdamW(group, lr=1e-3) for key, group in objectives.items()}
    unreached = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    history = []
    for epoch in range(1, epochs + 1):
        totals: dict[str, float] = defaultdict(float)
        for batch in digits()[torch.randperm(N_IMAGES)].to(device).split(BATCH):
            output = model({"data": batch}, epoch=epoch, dataset_size=N_IMAGES, uses_ddp=False)
            gradients = {
                key: torch.autograd.grad(output[key], group, retain_graph=True, allow_unused=True)
                for key, group in objectives.items()
            }
            for key, group in objectives.items():
                for parameter, gradient in zip(group, gradients[key], strict=True):
                    parameter.grad = gradient
            unreached -= {
                key
                for key, parameter in model.named_parameters()
                if parameter.grad is not None and parameter.grad.any()
            }
            for optimiser in optimisers.values():
                optimiser.step()
            for key, value in scalars(output).items():
                totals[key] += value / (N_IMAGES // BATCH)
        model.update()
        history.append(dict(totals))
    model.eval()
    return Training(model, history, unreached)


@cache
def trained(name: str) -> Training:
    return train(name)


def scalars(output: Any) -> dict[str, float]:
    return {
        key: value.item()
        for key, value in output.items()
        if isinstance(value, Tensor) and value.ndim == 0
    }


class Reads(TorchDispatchMode):
    """Counts the numbers that Python reads out of tensors, which holds up a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.n += func in reading
        return func(*args, **(kwargs or {}))


@every_model
def test_a_step_that_may_be_recorded_as_a_cuda_graph_reads_nothing_back(name: str) -> None:
    model = build(name)
    model.train()
    stage = getattr(model, "stage", lambda epoch: None)
    batch = digits()[:BATCH]
    for epoch in [epoch for epoch in (1, EPOCHS // 2, EPOCHS) if stage(epoch) is not None]:
        with Reads() as reads:
            output = model({"data": batch}, epoch=epoch, dataset_size=N_IMAGES)
            for key in model.objectives() if hasattr(model, "objectives") else ["loss"]:
                output[key].backward(retain_graph=True)
        assert reads.n == 0, epoch


def steps_by_stage(model: Any) -> dict[int, list[list[float]]]:
    """For every stage, what each of its epochs makes of the same batch and random numbers.

    That is the terms of the loss, and the slope of each objective.
    """
    model.train()
    start = copy.deepcopy(model.state_dict())
    objectives = (
        model.objectives() if hasattr(model, "objectives") else {"loss": model.parameters()}
    )
    followers = {key: list(parameters) for key, parameters in objectives.items()}
    found = defaultdict(list)
    for epoch in range(1, EPOCHS + 1):
        stage = model.stage(epoch)
        if stage is None:
            continue
        model.load_state_dict(start)
        torch.manual_seed(0)
        output = model({"data": digits()[:BATCH]}, epoch=epoch, dataset_size=N_IMAGES)
        slopes = [
            sum(
                gradient.norm().item()
                for gradient in torch.autograd.grad(
                    output[key], parameters, retain_graph=True, allow_unused=True
                )
                if gradient is not None
            )
            for key, parameters in followers.items()
        ]
        found[stage].append([*scalars(output).values(), *slopes])
    return found


@every_model
def test_epochs_of_one_stage_have_the_same_step(name: str) -> None:
    """A GPU replays a stage's first step in all its epochs: their losses must not differ."""
    model = build(name)
    if hasattr(model, "stage"):
        for steps in steps_by_stage(model).values():
            assert steps == [steps[0]] * len(steps)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vamp", {"linear_scheduling_steps": 4}),
        ("pythae:DisentangledBetaVAE", {"warmup_epoch": 4}),
        *((f"pythae:{name}", {}) for name in ADAPTED),
    ],
)
def test_epochs_of_a_schedule_are_stages(name: str, settings: dict[str, Any]) -> None:
    plugin, shape = resolve_model(name), (1, 32, 32)
    model = plugin.build(
        input_dim=shape,
        latent_dim=LATENT_DIM,
        reconstruction_loss="bce",
        network=Network(shape, width=4),
        settings=dict(plugin.settings) | settings,
    )
    stages = steps_by_stage(model)
    if settings:
        assert len(stages) >= 4
    for steps in stages.values():
        assert steps == [steps[0]] * len(steps)


@every_model
def test_training_lowers_a_finite_loss(name: str) -> None:
    history = trained(name).history
    values = torch.tensor([list(epoch.values()) for epoch in history])
    assert values.isfinite().all(), history
    assert history[-1]["loss"] < history[0]["loss"]
    assert len(history[0]) > 1, "the terms of the loss are in the output, each on its own"


@every_model
def test_gradients_reach_every_parameter(name: str) -> None:
    assert not trained(name).unreached


@every_model
def test_every_objective_is_in_the_output_and_shares_no_parameter(name: str) -> None:
    model = build(name)
    if not hasattr(model, "objectives"):
        return
    objectives = model.objectives()
    assert objectives.keys() <= scalars(model({"data": digits()[:BATCH]}, epoch=1)).keys()
    followers = [id(parameter) for group in objectives.values() for parameter in group]
    assert sorted(followers) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@every_model
def test_code_is_deterministic_and_follows_the_image(name: str) -> None:
    model = trained(name).model
    with torch.no_grad():
        first, second = model.latent_code(digits()), model.latent_code(digits())
    assert first.shape == (N_IMAGES, LATENT_DIM)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert first.std(dim=0).max() > 1e-3


@every_model
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_shapes(name: str, channels: int, size: int, loss: ReconstructionLoss) -> None:
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


@every_model
def test_batch_of_one(name: str) -> None:
    model = trained(name).model
    with torch.no_grad():
        alone, among = model.latent_code(digits()[:1]), model.latent_code(digits()[:8])
        output = model({"data": digits()[:1]}, epoch=EPOCHS, dataset_size=N_IMAGES, uses_ddp=False)
    assert alone.shape == (1, LATENT_DIM)
    torch.testing.assert_close(alone, among[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.tensor(value).isfinite() for value in scalars(output).values())


@every_model
def test_state_survives_safetensors_to_the_bit(name: str) -> None:
    model = trained(name).model
    torch.manual_seed(1)
    copy = build(name)
    copy.load_state_dict(load(save(model.state_dict())))
    copy.eval()
    for key, value in model.state_dict().items():
        assert torch.equal(copy.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(copy.latent_code(digits()), model.latent_code(digits()))
    assert torch.equal(draw(copy), draw(model))
    assert evaluated_loss(copy) == evaluated_loss(model)


def draw(model: Any, seed: int = 0, n_samples: int = 64) -> Tensor:
    torch.manual_seed(seed)
    samples: Tensor = model.sample_latent(n_samples)
    return samples


def evaluated_loss(model: Any) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        output = model({"data": digits()}, epoch=EPOCHS, dataset_size=N_IMAGES, uses_ddp=False)
    return float(output.loss)


@every_model
def test_same_seed_same_result(name: str) -> None:
    again, other = train(name, epochs=EPOCHS - 4), train(name, seed=1, epochs=1)
    assert again.history == trained(name).history[: EPOCHS - 4]
    assert other.history[0] != again.history[0]


@every_model
def test_prior_samples(name: str) -> None:
    model = trained(name).model
    samples = draw(model)
    assert samples.shape == (64, LATENT_DIM)
    assert samples.isfinite().all()
    assert not samples.requires_grad
    assert torch.equal(samples, draw(model))
    assert not torch.equal(samples, draw(model, seed=1))
    images = model.decoder(samples)["reconstruction"]
    assert images.shape == (64, 1, 32, 32)


# What each of the suite's own models has; a third party's may have either.
GAUSSIAN = {
    "vae", "beta-vae", "beta-tc-vae", "factor-vae", "info-vae", "vamp", "gmvae", "vade",
    "hgmvae-g", "hgmvae-u", "hgmvae-g-nofisher", "hgmvae-u-nofisher",
    "hgmvae-u-single", "hgmvae-u-single-nofisher",
}  # fmt: skip
MIXTURES = {name for name in GAUSSIAN if name.startswith("hgmvae")} | {"vamp", "gmvae", "vade"}
POINTS = {"wae-imq", "wae-rbf", "swae"}


def frozen(name: str) -> Any:
    return copy.deepcopy(trained(name).model).requires_grad_(False)


@every_model
def test_posterior_for_the_metrics_of_collapse(name: str) -> None:
    model = frozen(name)
    if name in GAUSSIAN | POINTS:
        assert hasattr(model, "latent_posterior") == (name in GAUSSIAN)
    if not hasattr(model, "latent_posterior"):
        return
    mean, log_var = model.latent_posterior(digits())
    assert mean.shape == log_var.shape == (N_IMAGES, LATENT_DIM)
    torch.testing.assert_close(mean, model.latent_code(digits()))
    assert log_var.isfinite().all()
    again = model.latent_posterior(digits())
    assert torch.equal(mean, again[0])
    assert torch.equal(log_var, again[1])


@every_model
def test_component_probabilities(name: str) -> None:
    model = frozen(name)
    if name in GAUSSIAN | POINTS:
        assert hasattr(model, "component_probabilities") == (name in MIXTURES)
    if not hasattr(model, "component_probabilities"):
        return
    probabilities = model.component_probabilities(digits())
    assert probabilities.shape[0] == N_IMAGES
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(N_IMAGES))
    torch.testing.assert_close(model.component_probabilities(digits()[:8]), probabilities[:8])
    if name in MIXTURES:
        assert probabilities.shape[1] == (50 if name == "vamp" else 10)
        assert not torch.allclose(probabilities, probabilities[:1].expand_as(probabilities))


@every_model
def test_posterior_variance_is_that_of_the_models_own_samples(name: str) -> None:
    """Where the forward pass draws its code, many passes have the moments that are claimed."""
    model = frozen(name)
    if name not in GAUSSIAN:
        return
    torch.manual_seed(0)
    data = digits()[:4]
    # In passes, because some objectives look at every pair of a batch.
    repeated = data.repeat(100, 1, 1, 1)
    passes = [model({"data": repeated}, epoch=EPOCHS, dataset_size=N_IMAGES).z for _ in range(25)]
    drawn = torch.cat(passes).unflatten(0, (2500, 4))
    mean, log_var = model.latent_posterior(data)
    deviation = (0.5 * log_var).exp()
    # Four standard errors of a mean and, for excess kurtosis up to 4, of a standard deviation.
    assert ((drawn.mean(dim=0) - mean).abs() < 4 * deviation / 50).all()
    ratio = drawn.std(dim=0) / deviation
    assert ((ratio - 1).abs() < 4 * (6 / 4 / 2500) ** 0.5).all()


@every_model
def test_too_few_epochs_are_refused(name: str) -> None:
    """A model with stages says so before it is trained; the suite's default is enough for all."""
    model = build(name)
    if hasattr(model, "check_epochs"):
        model.check_epochs(EPOCHS)
        with pytest.raises(ValueError, match="epoch"):
            model.check_epochs(1)


@every_model
def test_settings(name: str) -> None:
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


@every_model
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu(name: str) -> None:
    model = train(name, device="cuda").model
    assert model.sample_latent(4).is_cuda
    data = digits()[:8]
    with torch.no_grad():
        on_gpu = model.latent_code(data.cuda()).cpu()
        on_cpu = model.cpu().latent_code(data)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
