"""Every model that is trained as one with other seeds of its cell is what it would be alone."""

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
from hgmvae_bench.plugins.protocols import ParametricModel
from hgmvae_bench.plugins.registry import MODELS, resolve_model
from hgmvae_bench.training import loop, trainer
from hgmvae_bench.training.loop import SeededModel, TrainingResult, train
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import StackedModels
from vae_baselines.pythae_models import ADAPTED

EPOCHS = 7  # past every stage of HGMVAE's default schedule
SEEDS = (3, 4)

# Models of ours that take turns, and what they are told; others' models may be of either kind.
APART = {
    "vade": "it does not say that the steps of epoch 4 are alike",
    "pythae:Adversarial_AE": "RuntimeError: You are attempting to call Tensor.requires_grad_()",
    "pythae:RAE_GP": "RuntimeError: You are attempting to call Tensor.requires_grad_()",
    "pythae:VAE_IAF": r"RuntimeError: output with shape .* doesn't match",
    "pythae:VAE_LinNF": r"RuntimeError: output with shape .* doesn't match",
}
# Two take minutes, with up to 25 samples of every image; the third is in float32 whatever it gets.
TOO_LONG, SINGLE_PRECISION = {"MIWAE", "PIWAE"}, {"MSSSIM_VAE"}
NAMES = [
    *(name for name in MODELS if not isinstance(MODELS[name], ParametricModel)),
    *(f"pythae:{name}" for name in ADAPTED if name not in TOO_LONG | SINGLE_PRECISION),
]


def is_ours(name: str) -> bool:
    return type(resolve_model(name)).__module__.partition(".")[0] in {"hgmvae", "vae_baselines"}


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training in float64, where rounding has no time to grow into another result.

    It would in HGMVAE's fit: of so few codes, spectral clustering jumps with their last digits.
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


def seeds_of(name: str, device: torch.device) -> list[SeededModel]:
    plugin, shape = resolve_model(name), (1, 32, 32)
    seeded = []
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
        seeded.append(SeededModel(model.to(device), seed, rng))
    return seeded


def trained(
    name: str, device: torch.device, *, stacked: bool
) -> tuple[list[TrainingResult], list[SeededModel]]:
    digits = torch.tensor(load_digits().images[:64] * 15, dtype=torch.uint8)
    images = digits.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).unsqueeze(1)
    seeded = seeds_of(name, device)
    settings = TrainingSettings(epochs=EPOCHS, batch_size=32)
    return train(seeded, images, settings, device=device, stacked=stacked), seeded


@pytest.mark.parametrize(
    "device",
    [
        torch.device("cpu"),
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
def test_stacked_seeds_are_what_each_is_alone(
    name: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    expected, alone = trained(name, device, stacked=False)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found, stacked = trained(name, device, stacked=True)
    messages = [m for m in caplog.messages if "without CUDA graphs" not in m]
    if is_ours(name):
        assert found[0].stacked == (name not in APART)
    assert {result.stacked for result in found} == {not messages}
    if messages:
        [message] = messages
        assert re.search(APART.get(name, "take turns, not as one: "), message)
    for one, other in zip(found, expected, strict=True):
        assert one.divergence is other.divergence is None
        assert one.history.keys() == other.history.keys()
        for term, means in one.history.items():
            assert means == pytest.approx(other.history[term], rel=1e-5, abs=1e-5), term
    for seed, like in zip(stacked, alone, strict=True):
        for key, value in like.model.state_dict().items():
            torch.testing.assert_close(
                seed.model.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key
            )
        for key, state in like.rng.state().items():
            assert torch.equal(seed.rng.state()[key], state)


class Undrawn:
    """Stands in for a model's rng where nothing is computed."""

    generator = torch.Generator()


def on_fake_gpu(model: nn.Module) -> None:
    for module in model.modules():
        for name, weights in module.named_parameters(recurse=False):
            like = torch.empty_like(weights, device="cuda")
            setattr(module, name, nn.Parameter(like, requires_grad=weights.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cuda"))


@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.parametrize("name", [n for n in NAMES if is_ours(n) and n not in APART])
def test_a_gpu_has_kernels_for_every_operation_of_a_stack(name: str) -> None:
    """Tensors without content take torch's own choice of kernels, with no GPU about.

    What would have to be read back from the GPU raises here too.
    """
    torch.set_default_dtype(torch.float32)
    models = [seed.model for seed in seeds_of(name, torch.device("cpu"))]
    stage = getattr(models[0], "stage", lambda epoch: 0)
    first_epochs = {stage(epoch): epoch for epoch in range(EPOCHS, 0, -1)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in models:
            on_fake_gpu(model)
        stack = StackedModels(models, [Undrawn() for _ in models])
        images = torch.rand(4 * len(models), 1, 32, 32, device="cuda")
        for epoch in first_epochs.values():
            terms = stack.loss_terms(images, epoch=epoch, dataset_size=1000)
            for term, values in terms.scalars.items():
                assert (values.device.type, values.shape) == ("cuda", (len(models),)), term
