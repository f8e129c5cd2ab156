"""Stacked models: their draws, divergence, checkpoints, and models that cannot be stacked."""

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from pythae.models.base.base_utils import ModelOutput
from sklearn.datasets import load_digits
from torch import nn
from torch.func import vmap

from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.training import loop
from hgmvae_bench.training.checkpoints import Checkpoint
from hgmvae_bench.training.loop import SeededModel, train
from hgmvae_bench.training.network.conv import downsample, upsample
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.precision import supports_bf16
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel, StackedModels, StackingError
from hgmvae_bench.training.trainer import Trainer
from hgmvae_bench.utils.atomic_files import LocalFiles
from hgmvae_bench.utils.errors import StopRequestedError

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """Model with a loss of noise from ``draw``, which is NaN from call ``fails_at`` on."""

    def __init__(self, draw=torch.randn_like, fails_at=math.inf, start=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((2, 2), start))
        self.register_buffer("calls", torch.zeros(()))
        self.decoder = Pixels()
        self.draw, self.fails_at, self.updates = draw, fails_at, 0

    def forward(self, inputs, *, epoch, dataset_size):
        self.calls.add_(1)
        noise = self.draw(inputs["data"][:, 0]).float()
        images = self.decoder(self.value + 0 * noise)["reconstruction"]
        loss = (images - noise).square().mean() + inputs["data"].mean() * self.value.sum()
        loss = loss * torch.where(self.calls < self.fails_at, 1.0, math.nan)
        return ModelOutput(loss=loss, noise=noise.flatten()[0], images=images)

    def stage(self, epoch):
        return 0

    def update(self):
        self.updates += 1


class Pixels(nn.Module):
    def forward(self, latent):
        return ModelOutput(reconstruction=latent)


def seed_models(*models, checkpoints=None):
    checkpoints = checkpoints or [None] * len(models)
    return [
        SeededModel(model, seed, RunRNG(seed, CPU), checkpoint)
        for seed, (model, checkpoint) in enumerate(zip(models, checkpoints, strict=True))
    ]


IMAGES = torch.arange(48, dtype=torch.uint8)[:, None, None, None].expand(48, 1, 2, 2)


def fit(models, *, stacked, epochs=3, on_epoch=None):
    settings = TrainingSettings(epochs=epochs, batch_size=8)
    return train(models, IMAGES, settings, device=CPU, stacked=stacked, on_epoch=on_epoch)


def assert_equal_results(found, expected):
    for result, reference in zip(found, expected, strict=True):
        assert result.divergence == reference.divergence
        assert result.history.keys() == reference.history.keys()
        for term, means in result.history.items():
            assert means == pytest.approx(reference.history[term], rel=1e-4, abs=1e-5)


DRAWS = {
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "randint_like": lambda x: torch.randint_like(x, 3, 9),
    "randn": lambda x: torch.randn(len(x), 2, 2),
    "rand": lambda x: torch.rand(*x.shape, dtype=torch.float64),
    "randint": lambda x: torch.randint(5, x.shape),
    "randperm": lambda x: torch.randperm(x.numel()).view(x.shape),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_each_stacked_model_draws_the_same_numbers_as_alone(draw):
    expected = fit(alone := seed_models(Noisy(draw), Noisy(draw)), stacked=False)
    found = fit(stacked := seed_models(Noisy(draw), Noisy(draw)), stacked=True)
    assert all(result.stacked for result in found)
    assert_equal_results(found, expected)
    assert found[0].history["noise"] != found[1].history["noise"]
    for seed, reference in zip(stacked, alone, strict=True):
        assert torch.equal(seed.rng.state()["cpu"], reference.rng.state()["cpu"])
        assert int(seed.model.calls) == int(reference.model.calls) == 18
        assert seed.model.updates == 3


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: Noisy(F.dropout), "random operation"),
        (lambda: Noisy(lambda x: x * float(x.mean())), "RuntimeError"),
        (
            lambda: Noisy(lambda x: torch.rand(x.shape, generator=torch.Generator())),
            "own generator",
        ),
        (lambda: Noisy(lambda x: torch.randn_like(x.mT).mT), "model 1 draws other random numbers"),
        (
            lambda: Noisy(lambda x: torch.randn_like(x, memory_format=torch.preserve_format)),
            "TypeError",
        ),
    ],
    ids=["dropout", "reads a tensor back", "own generator", "other layout", "unknown option"],
)
def test_models_that_cannot_be_stacked_are_trained_separately(model, reason, caplog):
    expected = fit(seed_models(model(), model()), stacked=False)
    with caplog.at_level(logging.WARNING):
        found = fit(seed_models(model(), model()), stacked=True)
    [message] = caplog.messages
    assert "not stacked" in message
    assert reason in message
    assert [result.stacked for result in found] == [False, False]
    assert [result.history for result in found] == [result.history for result in expected]


def test_models_that_differ_in_more_than_tensors_are_not_stacked(caplog):
    def models():
        zeros = lambda x: 0 * x  # noqa: E731
        return seed_models(Noisy(zeros), Noisy(zeros, fails_at=1))

    with caplog.at_level(logging.WARNING):
        found = fit(models(), stacked=True)
    [message] = caplog.messages
    assert "loss of model 2" in message
    assert "nan alone" in message
    assert found[1].divergence == "epoch 1, step 1: the loss is not finite"


def test_every_stage_is_verified_before_the_first_step(caplog):
    def models():
        built = seed_models(Noisy(), Noisy())
        for seed in built:
            forward = seed.model.forward

            def read_back_later(inputs, *, epoch, dataset_size, forward=forward):
                output = forward(inputs, epoch=epoch, dataset_size=dataset_size)
                float(output["loss"].detach()) if epoch > 1 else None
                return output

            seed.model.forward = read_back_later
            seed.model.stage = lambda epoch: int(epoch > 1)
        return built

    with caplog.at_level(logging.WARNING):
        found = fit(stacked := models(), stacked=True)
    assert len(caplog.messages) == 1
    assert_equal_results(found, fit(models(), stacked=False))
    # The models no longer share memory.
    for seed in stacked:
        for tensor in (seed.model.value, seed.model.calls):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


def test_a_model_without_a_stage_for_some_epoch_is_not_stacked(caplog):
    first, second = Noisy(), Noisy()
    first.stage = second.stage = lambda epoch: None if epoch == 2 else 0
    with caplog.at_level(logging.WARNING):
        fit(seed_models(first, second), stacked=True)
    [message] = caplog.messages
    assert "no stage for epoch 2" in message


def test_only_torch_modules_can_be_stacked():
    with pytest.raises(StackingError, match=r"list.*torch\.nn\.Module"):
        StackedModels([[], []], [RunRNG(0, CPU), RunRNG(1, CPU)])


def test_verifying_a_stack_changes_neither_weights_nor_generators():
    models = seed_models(Noisy(), Noisy())
    stack = StackedModels([seed.model for seed in models], [seed.rng for seed in models])
    before = [seed.rng.state()["cpu"] for seed in models]
    stack.verify(torch.rand(4, 1, 2, 2), "float32", epoch=1, dataset_size=4)
    assert all(int(seed.model.calls) == 0 for seed in models)
    assert all(seed.model.value.grad is None for seed in models)
    assert all(
        torch.equal(seed.rng.state()["cpu"], b) for seed, b in zip(models, before, strict=True)
    )


def test_other_models_of_a_stack_continue_after_one_has_diverged():
    def models():
        # Stacked models may differ only in tensors.
        built = seed_models(Noisy(), Noisy(), Noisy())
        for seed, step in zip(built, (math.inf, 9, math.inf), strict=True):
            del seed.model.fails_at
            seed.model.register_buffer("fails_at", torch.tensor(step))
        return built

    epochs = []
    expected = fit(models(), stacked=False, epochs=4)
    found = fit(
        stacked := models(), stacked=True, epochs=4, on_epoch=lambda i, e, _: epochs.append((i, e))
    )
    assert found[1].divergence == "epoch 2, step 3: the loss is not finite"
    assert_equal_results(found, expected)
    assert epochs == [(0, 1), (1, 1), (2, 1), (0, 2), (2, 2), (0, 3), (2, 3), (0, 4), (2, 4)]
    assert [seed.model.updates for seed in stacked] == [4, 1, 4]


@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_stacked_and_single_trainings_resume_from_each_others_checkpoints(tmp_path, first, then):
    def checkpointed():
        checkpoints = [Checkpoint(LocalFiles(tmp_path), f"run-{n}") for n in range(2)]
        return seed_models(Noisy(), Noisy(start=1.0), checkpoints=checkpoints)

    def stop(index, epoch, _):
        if epoch == 2:
            raise StopRequestedError

    expected = fit(seed_models(Noisy(), Noisy(start=1.0)), stacked=False, epochs=5)
    with pytest.raises(StopRequestedError):
        fit(checkpointed(), stacked=first, epochs=5, on_epoch=stop)
    found = fit(checkpointed(), stacked=then, epochs=5)
    assert [result.resumed_after for result in found] == [2, 2]
    assert_equal_results(found, expected)


def test_only_models_with_equally_many_finished_epochs_are_stacked(tmp_path):
    checkpoints = [Checkpoint(LocalFiles(tmp_path), f"run-{n}") for n in range(3)]
    models = seed_models(Noisy(), Noisy(), Noisy(), checkpoints=checkpoints)

    def stop(index, epoch, _):
        if epoch == 2:
            raise StopRequestedError

    with pytest.raises(StopRequestedError):
        fit(models[:1], stacked=False, epochs=4, on_epoch=stop)
    again = seed_models(Noisy(), Noisy(), Noisy(), checkpoints=checkpoints)
    found = fit(again, stacked=True, epochs=4)
    assert [result.stacked for result in found] == [False, True, True]
    assert [result.resumed_after for result in found] == [2, 0, 0]
    assert_equal_results(
        found, fit(seed_models(Noisy(), Noisy(), Noisy()), stacked=False, epochs=4)
    )


def test_a_captured_step_of_a_stack_can_be_replayed(monkeypatch):
    """A CUDA graph reads and writes the same tensors in every replay."""
    expected = fit(seed_models(Noisy(), Noisy()), stacked=True)
    captured = []

    class Replay:
        def __init__(self, step):
            self.replay = step

    class GraphTrainer(Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.use_graphs = True

        def try_without_sync(self, epoch):
            self.step(epoch)

        def capture(self, epoch):
            captured.append(epoch)
            tensors = [id(value) for value in self.group.parameters.values()]
            self.step(epoch)
            assert tensors == [id(value) for value in self.group.parameters.values()]
            return Replay(lambda: self.step(epoch))

    monkeypatch.setattr(loop, "Trainer", GraphTrainer)
    found = fit(seed_models(Noisy(), Noisy()), stacked=True)
    assert captured == [1]
    assert [result.history for result in found] == [result.history for result in expected]


def test_bf16_losses_of_a_stack_agree_with_single_models():
    if not supports_bf16(CPU):
        pytest.skip("this CPU would emulate bf16")

    def vaes():
        built = []
        for seed in (1, 2):
            rng = RunRNG(seed, CPU)
            with rng.activate():
                model = MODELS["vae"].build(
                    input_dim=(1, 32, 32),
                    latent_dim=2,
                    reconstruction_loss="bce",
                    network=Network((1, 32, 32), width=4),
                    settings={},
                )
            built.append(SeededModel(model, seed, rng))
        return built

    digits = torch.tensor(load_digits().images[:64] * 15, dtype=torch.uint8)
    images = digits.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).unsqueeze(1)
    settings = TrainingSettings(epochs=2, batch_size=16, precision="bf16")
    alone = train(vaes(), images, settings, device=CPU)
    stacked = train(vaes(), images, settings, device=CPU, stacked=True)
    exact = train(vaes(), images, settings.model_copy(update={"precision": "float32"}), device=CPU)
    for result, single, reference in zip(stacked, alone, exact, strict=True):
        assert result.stacked
        assert result.history["loss"] == pytest.approx(single.history["loss"], rel=1e-2)
        assert result.history["loss"] != reference.history["loss"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_a_stack_is_computed_per_model(training, affine):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3, affine=affine)
            self.norm.running_mean.normal_()
            if affine:
                nn.init.normal_(self.norm.weight)
            self.decoder = Pixels()
            self.slope = nn.Parameter(torch.randn(1, 3, 1, 1))

        def forward(self, inputs, **_):
            self.norm.train(training)
            maps = inputs["data"] * self.slope
            # Channels-last, like the maps of the suite's convolutions.
            maps = self.norm(maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
            if training:
                maps = F.batch_norm(maps.exp(), None, None, training=True)
            return ModelOutput(loss=(maps * maps.detach().sin()).sum())

    models = seed_models(*(Normalised().double() for _ in range(3)))
    images = torch.rand(12, 1, 4, 4, dtype=torch.float64)
    own = copy.deepcopy([seed.model for seed in models])
    parts = zip(own, images.split(4), strict=True)
    expected = [model({"data": part}).loss for model, part in parts]
    stack = StackedModels([seed.model for seed in models], [seed.rng for seed in models])
    found = stack.loss_terms(images).scalars["loss"]
    torch.testing.assert_close(found, torch.stack(expected))
    gradients = torch.autograd.grad(found.sum(), stack.objectives()["loss"], allow_unused=True)
    for seed, (loss, model) in enumerate(zip(expected, own, strict=True)):
        alone = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close([gradient[seed] for gradient in gradients], list(alone))
    for seed, reference in zip(models, own, strict=True):
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(seed.model.state_dict()[name], value)


@pytest.mark.parametrize(("layer", "shapes"), [
    (downsample, [(3, 8, 6, 2), (5, 3, 3, 2)]),
    (downsample, [(3, 2, 2, 4), (5, 3, 3, 4)]),
    (upsample, [(3, 4, 6, 5), (5, 3, 3, 2)]),
    (upsample, [(3, 4, 4, 2), (2, 3, 3, 5)]),
    (upsample, [(3, 1, 1, 5), (5, 3, 3, 2)]),
])  # fmt: skip
def test_vmapped_convolutions_equal_separate_ones(layer, shapes):
    maps, weight = (
        torch.randn(4, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    stacked = vmap(layer)(maps, weight)
    separate = torch.stack([layer(m, w) for m, w in zip(maps, weight, strict=True)])
    torch.testing.assert_close(stacked, separate)
    slope = torch.randn_like(separate)
    torch.testing.assert_close(
        torch.autograd.grad(stacked, (maps, weight), slope),
        torch.autograd.grad(separate, (maps, weight), slope),
    )


def test_a_single_model_draws_from_its_own_state():
    rng = RunRNG(3, CPU)
    single = SingleModel(Noisy(), rng)
    with single.activate_rng():
        drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert single.rngs == [rng]
