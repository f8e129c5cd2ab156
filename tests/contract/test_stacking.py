"""Contract of stacked seeds: every model trained in a stack equals the model trained alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hgmvae.mixture import GlobalMixture
from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.plugins.protocols import BenchmarkModel, HasStages, ParametricModel
from hgmvae_bench.plugins.registry import MODELS, resolve_model
from hgmvae_bench.training import loop, trainer
from hgmvae_bench.training.loop import SeededModel, TrainingResult, train
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import StackedModels
from vae_baselines.pythae_models import ADAPTED

MAX_EPOCHS = 7
SEEDS = (3, 4)
CPU = torch.device("cpu")

# The suite's models that cannot be stacked, with the reason. Those of third parties may be either.
NOT_STACKED = {
    "vade": "no stage for epoch 4",
    "pythae:Adversarial_AE": "requires_grad_",
    "pythae:RAE_GP": "requires_grad_",
    "pythae:VAE_IAF": r"output with shape .* doesn't match",
    "pythae:VAE_LinNF": r"output with shape .* doesn't match",
}
# Two take minutes, with up to 25 samples per image; the third computes in float32 only.
TOO_SLOW, SINGLE_PRECISION = {"MIWAE", "PIWAE"}, {"MSSSIM_VAE"}
NAMES = [
    *(name for name in MODELS if not isinstance(MODELS[name], ParametricModel)),
    *(f"pythae:{name}" for name in ADAPTED if name not in TOO_SLOW | SINGLE_PRECISION),
]


def is_ours(name: str) -> bool:
    return type(resolve_model(name)).__module__.partition(".")[0] in {"hgmvae", "vae_baselines"}


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in float64, in which rounding errors stay small.

    HGMVAE's fit receives rounded codes: spectral clustering of so few depends on their last digits.
    """
    fit = GlobalMixture.fit
    monkeypatch.setattr(
        GlobalMixture,
        "fit",
        lambda self, codes, *rest: fit(self, codes.round(decimals=6), *rest),
    )
    for module in (trainer, loop):
        to_unit = module.to_unit  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "to_unit", lambda images, f=to_unit: f(images).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded_models(name: str, device: torch.device) -> list[SeededModel]:
    plugin, shape = resolve_model(name), (1, 32, 32)
    models = []
    for seed in SEEDS:
        rng = RunRNG(seed, device)
        with rng.activate():
            model = plugin.build(
                input_dim=shape,
                latent_dim=2,
                reconstruction_loss="bce",
                network=Network(shape, width=1),
                settings=plugin.settings,
            )
        models.append(SeededModel(model.to(device), seed, rng))
    return models


def first_epochs(model: BenchmarkModel) -> list[int]:
    """First epoch of each stage of the model."""
    if not isinstance(model, HasStages):
        return [1]
    stages = {model.stage(epoch): epoch for epoch in range(MAX_EPOCHS, 0, -1)}
    return sorted(stages.values())


def train_seeds(
    name: str, device: torch.device, *, stacked: bool
) -> tuple[list[TrainingResult], list[SeededModel]]:
    """Train past the start of the model's last stage, for at least three epochs."""
    digits = torch.tensor(load_digits().images[:64] * 15, dtype=torch.uint8)
    images = digits.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).unsqueeze(1)
    models = seeded_models(name, device)
    epochs = max(3, min(MAX_EPOCHS, first_epochs(models[0].model)[-1] + 1))
    settings = TrainingSettings(epochs=epochs, batch_size=32)
    return train(models, images, settings, device=device, stacked=stacked), models


@pytest.mark.parametrize(
    "device",
    [
        CPU,
        pytest.param(
            torch.device("cuda"),
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
    ids=["cpu", "gpu"],
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "factor-vae" else n for n in NAMES],
)
def test_stacked_seeds_equal_seeds_trained_alone(
    name: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    expected, single_models = train_seeds(name, device, stacked=False)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found, stacked_models = train_seeds(name, device, stacked=True)
    messages = [message for message in caplog.messages if "without CUDA graphs" not in message]
    if is_ours(name):
        assert found[0].stacked == (name not in NOT_STACKED)
    assert {result.stacked for result in found} == {not messages}
    if messages:
        [message] = messages
        assert re.search(NOT_STACKED.get(name, "not stacked"), message)
    for result, reference in zip(found, expected, strict=True):
        assert result.divergence is reference.divergence is None
        assert result.history.keys() == reference.history.keys()
        for term, means in result.history.items():
            assert means == pytest.approx(reference.history[term], rel=1e-5, abs=1e-5), term
    for stacked, single in zip(stacked_models, single_models, strict=True):
        for key, value in single.model.state_dict().items():
            torch.testing.assert_close(
                stacked.model.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key
            )
        for key, state in single.rng.state().items():
            assert torch.equal(stacked.rng.state()[key], state)


class FakeRNG:
    """Replacement for a model's random state where no values are computed."""

    generator = torch.Generator()


def move_to_fake_gpu(model: nn.Module) -> None:
    for module in model.modules():
        for name, weights in module.named_parameters(recurse=False):
            fake = torch.empty_like(weights, device="cuda")
            setattr(module, name, nn.Parameter(fake, requires_grad=weights.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cuda"))


@pytest.mark.extended
@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
@pytest.mark.parametrize("name", [n for n in NAMES if is_ours(n) and n not in NOT_STACKED])
def test_a_gpu_has_kernels_for_every_operation_of_a_stack(name: str) -> None:
    """Fake tensors select kernels as real ones do, without a GPU.

    They also raise where a value would have to be read back from the GPU.
    """
    torch.set_default_dtype(torch.float32)
    models = [seeded.model for seeded in seeded_models(name, CPU)]
    epochs = first_epochs(models[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in models:
            move_to_fake_gpu(model)
        stack = StackedModels(models, [FakeRNG() for _ in models])
        images = torch.rand(4 * len(models), 1, 32, 32, device="cuda")
        for epoch in epochs:
            terms = stack.loss_terms(images, epoch=epoch, dataset_size=1000)
            for term, values in terms.scalars.items():
                assert (values.device.type, values.shape) == ("cuda", (len(models),)), term
