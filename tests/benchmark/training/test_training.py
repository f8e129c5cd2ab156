import logging
import math
from contextlib import contextmanager
from unittest.mock import Mock, call

import pytest
import torch
from pythae.models.base.base_utils import ModelOutput
from torch import nn

from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.training import loop
from hgmvae_bench.training import trainer as trainer_module
from hgmvae_bench.training.loop import SeededModel, train
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import Trainer

CPU = torch.device("cpu")


class Mean(nn.Module):
    """Learns the mean pixel, the minimum of its squared loss.

    ``losses`` are factors of the loss, one per step.
    """

    def __init__(self, losses=None):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.decoder = nn.Identity()
        self.batches, self.calls, self.updates, self.losses = [], [], 0, losses

    def forward(self, inputs, *, epoch, dataset_size):
        data = inputs["data"]
        self.batches.append(data)
        self.calls.append((epoch, dataset_size))
        loss = (data.mean() - self.value).square().sum()
        if self.losses:
            loss = loss * self.losses.pop(0)
        return ModelOutput(loss=loss, batch=data, size=torch.tensor(float(len(data))))

    def update(self):
        self.updates += 1


def images(n, value=255):
    return torch.full((n, 1, 2, 2), value, dtype=torch.uint8)


def fit(model, data, **settings):
    settings = {"epochs": 2, "batch_size": 4, **settings}
    seeded = SeededModel(model, 0, RunRNG(0, CPU))
    [result] = train([seeded], data, TrainingSettings(**settings), device=CPU)
    return result


def test_training_minimises_the_loss_and_reports_every_scalar_per_epoch():
    model = Mean()
    result = fit(model, images(8), epochs=60, learning_rate=0.1, weight_decay=0)
    assert model.value.item() == pytest.approx(1, abs=1e-2)
    assert list(result.history) == ["loss", "size"]
    assert result.history["size"] == [4.0] * 60
    # The value starts at 0, the images are 1, and AdamW's first step is the learning rate.
    assert result.history["loss"][0] == pytest.approx((1 + 0.81) / 2, abs=1e-4)
    assert result.divergence is None


def test_an_epoch_uses_each_image_at_most_once_in_batches_of_equal_size():
    data = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    model = Mean()
    fit(model, data, epochs=2, batch_size=4)
    assert [len(batch) for batch in model.batches] == [4, 4, 4, 4]
    order = [round(v * 255) for batch in model.batches for v in batch[:, 0, 0, 0].tolist()]
    assert len(set(order[:8])) == len(set(order[8:])) == 8
    assert order[:8] != order[8:]
    assert model.calls == [(1, 10)] * 2 + [(2, 10)] * 2
    assert model.updates == 2


def test_fewer_images_than_the_batch_size_form_one_batch():
    model = Mean()
    fit(model, images(3), epochs=1, batch_size=128)
    assert [len(batch) for batch in model.batches] == [3]


def test_a_non_finite_loss_ends_the_training_and_keeps_the_finished_epochs():
    model = Mean(losses=[1.0, 1.0, 1.0, math.inf])
    result = fit(model, images(8), epochs=3)
    assert result.divergence == "epoch 2, step 2: the loss is not finite"
    assert len(result.history["loss"]) == 1
    assert model.updates == 1


def test_non_finite_parameters_count_as_divergence():
    network = Network((1, 32, 32), width=2)
    plugin = MODELS["vae"]
    model = plugin.build(
        input_dim=(1, 32, 32),
        latent_dim=2,
        reconstruction_loss="bce",
        network=network,
        settings=plugin.settings,
    )
    with torch.no_grad():
        next(iter(model.decoder.parameters())).fill_(math.nan)
    data = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    result = fit(model, data)
    assert result.divergence is not None
    assert result.divergence.startswith("epoch 1, step 1: ")
    assert result.history == {}


class TwoObjectives(nn.Module):
    """Two parameters, each with its own loss."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Identity()
        self.first, self.second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def objectives(self):
        return {"first_loss": [self.first], "second_loss": [self.second]}

    def forward(self, inputs, **_):
        product = (self.first - 1) * (self.second - 1)
        first_loss = (self.first - 1).square().sum() + 0 * product.sum()
        second_loss = (self.second - 2).square().sum() + 5 * self.first.sum()
        return ModelOutput(
            loss=first_loss + second_loss, first_loss=first_loss, second_loss=second_loss
        )

    def update(self):
        pass


def test_each_objective_trains_only_its_own_parameters():
    model = TwoObjectives()
    fit(model, images(8), epochs=200, learning_rate=0.05, weight_decay=0)
    # The second loss would push `first` towards minus infinity.
    assert model.first.item() == pytest.approx(1, abs=0.02)
    assert model.second.item() == pytest.approx(2, abs=0.02)


def test_equal_seeds_give_bitwise_equal_weights(digits):
    def weights(batch_seed):
        torch.manual_seed(0)
        plugin = MODELS["vae"]
        model = plugin.build(
            input_dim=digits.input_dim,
            latent_dim=2,
            reconstruction_loss="bce",
            network=Network(digits.input_dim, width=2),
            settings=plugin.settings,
        )
        settings = TrainingSettings(epochs=1, batch_size=64)
        seeded = SeededModel(model, batch_seed, RunRNG(0, CPU))
        train([seeded], digits.train_images[:256], settings, device=CPU)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def build_small(name, seed, data, device=CPU, **settings):
    rng = RunRNG(seed, device)
    plugin = MODELS[name]
    with rng.activate():
        model = plugin.build(
            input_dim=data.input_dim,
            latent_dim=2,
            reconstruction_loss="bce",
            network=Network(data.input_dim, width=2),
            settings={**plugin.settings, **settings},
        )
    return SeededModel(model.to(device), seed, rng)


def histories_and_weights(seeded, data, device=CPU, epochs=3):
    settings = TrainingSettings(epochs=epochs, batch_size=32)
    results = train(seeded, data.train_images[:320], settings, device=device)
    weights = [torch.cat([p.detach().flatten() for p in s.model.parameters()]) for s in seeded]
    return [result.history for result in results], weights


def test_models_trained_in_alternating_steps_equal_models_trained_alone(digits):
    alternating = histories_and_weights(
        [build_small("vae", seed, digits) for seed in (1, 2)], digits
    )
    alone = [histories_and_weights([build_small("vae", seed, digits)], digits) for seed in (1, 2)]
    assert alternating[0] == [history for [history], _ in alone]
    for weights, [expected] in zip(alternating[1], [w for _, w in alone], strict=True):
        assert torch.equal(weights, expected)


def test_the_first_non_finite_step_of_an_epoch_is_reported():
    """A GPU finishes the epoch, and later losses may be finite again."""
    trainer = Trainer(
        SingleModel(Mean(losses=[1.0, math.inf, 1.0, math.nan, 1.0]), RunRNG(0, CPU)),
        images(20),
        TrainingSettings(batch_size=4),
        batch_seeds=[0],
        device=CPU,
    )
    trainer.on_gpu = True
    assert len(list(trainer.steps(1))) == 5
    assert trainer.finish_epoch() == [({}, "step 2: the loss is not finite")]


def test_other_models_continue_after_one_has_diverged():
    finite, diverging = Mean(), Mean(losses=[1.0, math.nan])
    seeded = [SeededModel(model, 0, RunRNG(0, CPU)) for model in (finite, diverging)]
    results = train(seeded, images(8), TrainingSettings(epochs=2, batch_size=4), device=CPU)
    assert results[0].divergence is None
    assert len(results[0].history["loss"]) == 2
    assert results[1].divergence == "epoch 1, step 2: the loss is not finite"
    assert results[1].history == {}


def test_loss_terms_that_change_within_an_epoch_raise_an_error():
    class ExtraTerm(Mean):
        def forward(self, inputs, **options):
            output = super().forward(inputs, **options)
            if len(self.batches) == 2:
                output["late"] = output["loss"].detach()
            return output

    with pytest.raises(ValueError, match=r"ExtraTerm.*\(loss, size, late\).*\(loss, size\)"):
        fit(ExtraTerm(), images(12), epochs=1)


def test_loss_terms_that_change_between_epochs_raise_an_error():
    """Otherwise the values of a late term would be recorded at the first epochs."""

    class LateTerm(Mean):
        def forward(self, inputs, *, epoch, dataset_size):
            output = super().forward(inputs, epoch=epoch, dataset_size=dataset_size)
            if epoch > 1:
                output["late"] = output.pop("size")
            return output

    with pytest.raises(ValueError, match=r"LateTerm.* epoch 2 .*new: late; missing: size"):
        fit(LateTerm(), images(8), epochs=3)


class Replay:
    """Replacement for a CUDA graph: repeats a step of the epoch in which it was captured."""

    def __init__(self, trainer, epoch):
        self.trainer, self.epoch = trainer, epoch

    def replay(self):
        with self.trainer.group.activate_rng():
            self.trainer.step(self.epoch)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("vae", {}), ("hgmvae-u", {"warmup_epochs": 2}), ("vade", {"pretrain_epochs": 2})],
)
def test_a_captured_step_can_be_replayed_throughout_its_stage(digits, monkeypatch, name, settings):
    eager = histories_and_weights([build_small(name, 0, digits, **settings)], digits, epochs=5)
    captured = []

    class GraphTrainer(Trainer):
        def try_without_sync(self, epoch):
            with self.group.activate_rng():
                self.step(epoch)

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.use_graphs = True

        def capture(self, epoch):
            captured.append(epoch)
            self.step(epoch)
            return Replay(self, epoch)

    monkeypatch.setattr(loop, "Trainer", GraphTrainer)
    replayed = histories_and_weights([build_small(name, 0, digits, **settings)], digits, epochs=5)
    assert captured == {"vae": [1], "hgmvae-u": [1, 2, 3, 4], "vade": [1, 3]}[name]
    assert replayed[0] == eager[0]
    assert torch.equal(replayed[1][0], eager[1][0])


class SyncingTrainer(Trainer):
    """CPU trainer whose steps raise as under torch's synchronisation debug mode."""

    def step(self, epoch):
        super().step(epoch)
        if self.forbids_sync:
            raise RuntimeError("called a synchronizing CUDA operation")


def test_a_step_that_waits_for_the_gpu_is_rolled_back_and_run_eagerly(digits, monkeypatch, caplog):
    syncing, plain = build_small("vae", 0, digits), build_small("vae", 0, digits)
    settings = TrainingSettings(batch_size=32)
    trainers = [
        SyncingTrainer(
            SingleModel(s.model, s.rng),
            digits.train_images[:320],
            settings,
            batch_seeds=[0],
            device=CPU,
        )
        for s in (syncing, plain)
    ]

    @contextmanager
    def forbid_sync():
        trainers[0].forbids_sync = True
        try:
            yield
        finally:
            trainers[0].forbids_sync = False

    monkeypatch.setattr(trainer_module, "forbid_gpu_sync", forbid_sync)
    for trainer in trainers:
        trainer.forbids_sync, trainer.use_graphs = False, True
        next(trainer.steps(1))
    with caplog.at_level(logging.WARNING):
        trainers[0].try_without_sync(1)
    with trainers[1].group.activate_rng():
        trainers[1].step(1)
    [message] = caplog.messages
    assert "VAE" in message
    assert "without CUDA graphs" in message
    assert "synchronizing CUDA operation" in message
    assert trainers[0].use_graphs is False
    batches = [trainer.order.next_batch() for trainer in trainers]
    assert torch.equal(*batches)
    [found], [expected] = (trainer.states() for trainer in trainers)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("error_at_end", [None, RuntimeError("capture invalidated")])
def test_running_out_of_memory_during_a_capture_is_reported_as_such(monkeypatch, error_at_end):
    trainer = Mock(_optimizers=[], step=Mock(side_effect=torch.OutOfMemoryError("full")))
    trainer.group.generators = [torch.Generator()]
    graph = Mock(capture_end=Mock(side_effect=error_at_end))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Trainer.capture(trainer, 1)
    registered = graph.register_generator_state.call_args_list
    assert registered == ([call(*trainer.group.generators)] if torch.__version__ < "2.14" else [])
    graph.capture_end.assert_called_once_with()
    graph.replay.assert_not_called()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"pythae"}))
def test_replayed_steps_on_a_gpu_equal_eager_ones(digits, monkeypatch, caplog, name):
    gpu = torch.device("cuda")
    torch.backends.cudnn.deterministic = True
    models = [build_small(name, s, digits, gpu) for s in (0, 1)]
    with caplog.at_level(logging.WARNING):
        replayed = histories_and_weights(models, digits, gpu, epochs=7)
    assert caplog.messages == []
    monkeypatch.setattr(trainer_module, "training_stage", lambda model, epoch: None)
    eager = histories_and_weights(
        [build_small(name, s, digits, gpu) for s in (0, 1)], digits, gpu, epochs=7
    )
    for history, reference in zip(replayed[0], eager[0], strict=True):
        assert history["loss"] == pytest.approx(reference["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_that_waits_for_the_gpu_is_trained_without_cuda_graphs(digits, caplog):
    gpu = torch.device("cuda")
    plain, syncing = build_small("vae", 0, digits, gpu), build_small("vae", 0, digits, gpu)
    forward = syncing.model.forward

    def reading(inputs, **options):
        output = forward(inputs, **options)
        float(output["loss"])
        return output

    syncing.model.forward = reading
    expected = histories_and_weights([plain], digits, gpu)
    with caplog.at_level(logging.WARNING):
        found = histories_and_weights([syncing], digits, gpu)
    [message] = caplog.messages
    assert "VAE" in message
    assert "without CUDA graphs" in message
    assert found[0][0]["loss"] == pytest.approx(expected[0][0]["loss"], rel=1e-3)


def test_weights_decay_as_the_settings_say():
    model = Mean()
    torch.nn.init.ones_(model.value)  # the minimum: the gradient is 0
    fit(model, images(4), epochs=1, learning_rate=0.1, weight_decay=0.5)
    assert model.value.item() == pytest.approx(1 - 0.1 * 0.5)
