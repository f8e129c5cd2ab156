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
    """Learns the mean image: the squared loss has its minimum there."""

    def __init__(self, losses=None):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.decoder = nn.Identity()
        self.seen, self.epochs, self.updates, self.losses = [], [], 0, losses

    def forward(self, inputs, *, epoch, dataset_size):
        data = inputs["data"]
        self.seen.append(data)
        self.epochs.append((epoch, dataset_size))
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


def test_it_minimises_the_loss_and_reports_every_scalar_per_epoch():
    model = Mean()
    result = fit(model, images(8), epochs=60, learning_rate=0.1, weight_decay=0)
    assert model.value.item() == pytest.approx(1, abs=1e-2)
    assert list(result.history) == ["loss", "size"]
    assert result.history["size"] == [4.0] * 60
    # Before any step the value is 0 and the images are 1; AdamW's first step is the learning rate.
    assert result.history["loss"][0] == pytest.approx((1 + 0.81) / 2, abs=1e-4)
    assert result.divergence is None


def test_every_image_is_seen_at_most_once_an_epoch_in_batches_of_one_size():
    data = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    model = Mean()
    fit(model, data, epochs=2, batch_size=4)
    assert [len(batch) for batch in model.seen] == [4, 4, 4, 4]
    seen = [round(v * 255) for batch in model.seen for v in batch[:, 0, 0, 0].tolist()]
    assert len(set(seen[:8])) == len(set(seen[8:])) == 8
    assert seen[:8] != seen[8:]
    assert model.epochs == [(1, 10)] * 2 + [(2, 10)] * 2
    assert model.updates == 2


def test_fewer_images_than_a_batch_are_one_batch():
    model = Mean()
    fit(model, images(3), epochs=1, batch_size=128)
    assert [len(batch) for batch in model.seen] == [3]


def test_a_loss_that_is_not_finite_ends_the_run_with_what_it_had():
    model = Mean(losses=[1.0, 1.0, 1.0, math.inf])
    result = fit(model, images(8), epochs=3)
    assert result.divergence == "epoch 2, step 2: the loss is not finite"
    assert len(result.history["loss"]) == 1
    assert model.updates == 1


def test_parameters_that_are_not_finite_count_as_divergence_not_as_an_error():
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


class Rivals(nn.Module):
    """Two parameters, each to follow a loss of its own."""

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


def test_each_objective_moves_only_its_own_parameters():
    model = Rivals()
    fit(model, images(8), epochs=200, learning_rate=0.05, weight_decay=0)
    # Had the second loss moved `first`, it would have run off to minus infinity.
    assert model.first.item() == pytest.approx(1, abs=0.02)
    assert model.second.item() == pytest.approx(2, abs=0.02)


def test_the_same_seeds_give_the_same_weights_to_the_bit(digits):
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


def small(name, seed, data, device=CPU, **settings):
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


def trained(seeded, data, device=CPU, epochs=3):
    settings = TrainingSettings(epochs=epochs, batch_size=32)
    results = train(seeded, data.train_images[:320], settings, device=device)
    weights = [torch.cat([p.detach().flatten() for p in s.model.parameters()]) for s in seeded]
    return [result.history for result in results], weights


def test_models_trained_together_are_as_if_each_were_alone(digits):
    together = trained([small("vae", seed, digits) for seed in (1, 2)], digits)
    alone = [trained([small("vae", seed, digits)], digits) for seed in (1, 2)]
    assert together[0] == [history for [history], _ in alone]
    for weights, [expected] in zip(together[1], [w for _, w in alone], strict=True):
        assert torch.equal(weights, expected)


def test_of_several_faults_in_an_epoch_the_first_is_named():
    """A GPU goes on to the epoch's end; what comes after a fault may be finite again."""
    trainer = Trainer(
        SingleModel(Mean(losses=[1.0, math.inf, 1.0, math.nan, 1.0]), RunRNG(0, CPU)),
        images(20),
        TrainingSettings(batch_size=4),
        batch_seeds=[0],
        device=CPU,
    )
    trainer._on_gpu = True
    assert len(list(trainer.steps(1))) == 5
    assert trainer.finish_epoch() == [({}, "step 2: the loss is not finite")]


def test_one_of_several_models_may_diverge():
    sound, broken = Mean(), Mean(losses=[1.0, math.nan])
    seeded = [SeededModel(model, 0, RunRNG(0, CPU)) for model in (sound, broken)]
    results = train(seeded, images(8), TrainingSettings(epochs=2, batch_size=4), device=CPU)
    assert results[0].divergence is None
    assert len(results[0].history["loss"]) == 2
    assert results[1].divergence == "epoch 1, step 2: the loss is not finite"
    assert results[1].history == {}


def test_terms_that_come_and_go_within_an_epoch_are_refused():
    class Fickle(Mean):
        def forward(self, inputs, **options):
            output = super().forward(inputs, **options)
            if len(self.seen) == 2:
                output["late"] = output["loss"].detach()
            return output

    message = r"Fickle returns other terms \(loss, size, late\) than .* first step \(loss, size\)"
    with pytest.raises(ValueError, match=message):
        fit(Fickle(), images(12), epochs=1)


class Replay:
    """Stands in for a CUDA graph: repeats a step as it was when it was captured."""

    def __init__(self, trainer, epoch):
        self.trainer, self.epoch = trainer, epoch

    def replay(self):
        with self.trainer.group.activate_rng():
            self.trainer._step(self.epoch)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("vae", {}), ("hgmvae-u", {"warmup_epochs": 2}), ("vade", {"pretrain_epochs": 2})],
)
def test_a_step_of_one_stage_can_be_replayed_in_all_its_epochs(digits, monkeypatch, name, settings):
    eager = trained([small(name, 0, digits, **settings)], digits, epochs=5)
    captured = []

    class Recording(Trainer):
        def _rehearse(self, epoch):
            with self.group.activate_rng():
                self._step(epoch)

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self._records_steps = True

        def _capture(self, epoch):
            captured.append(epoch)
            self._step(epoch)
            return Replay(self, epoch)

    monkeypatch.setattr(loop, "Trainer", Recording)
    replayed = trained([small(name, 0, digits, **settings)], digits, epochs=5)
    assert captured == {"vae": [1], "hgmvae-u": [1, 2, 3, 4], "vade": [1, 3]}[name]
    assert replayed[0] == eager[0]
    assert torch.equal(replayed[1][0], eager[1][0])


class Rehearsed(Trainer):
    """A trainer on a CPU whose steps wait for the device, as torch's debug mode would tell."""

    def _step(self, epoch):
        super()._step(epoch)
        if self.refusing:
            raise RuntimeError("called a synchronizing CUDA operation")


def test_a_step_that_cannot_be_recorded_is_done_over(digits, monkeypatch, caplog):
    waiting, sound = small("vae", 0, digits), small("vae", 0, digits)
    settings = TrainingSettings(batch_size=32)
    trainers = [
        Rehearsed(
            SingleModel(s.model, s.rng),
            digits.train_images[:320],
            settings,
            batch_seeds=[0],
            device=CPU,
        )
        for s in (waiting, sound)
    ]

    @contextmanager
    def refusing_to_wait():
        trainers[0].refusing = True
        try:
            yield
        finally:
            trainers[0].refusing = False

    monkeypatch.setattr(trainer_module, "_refusing_to_wait", refusing_to_wait)
    for trainer in trainers:
        trainer.refusing, trainer._records_steps = False, True
        next(trainer.steps(1))
    with caplog.at_level(logging.WARNING):
        trainers[0]._rehearse(1)
    with trainers[1].group.activate_rng():
        trainers[1]._step(1)
    assert caplog.messages == [
        "VAE is trained without CUDA graphs: called a synchronizing CUDA operation"
    ]
    assert trainers[0]._records_steps is False
    assert int(trainers[0]._step_number) == int(trainers[1]._step_number) == 2
    [one], [other] = (t.states() for t in trainers)  # weights, statistics, optimiser, generators
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("at_the_end", [None, RuntimeError("capture invalidated")])
def test_too_little_memory_for_a_graph_is_told_as_such(monkeypatch, at_the_end):
    trainer = Mock(_optimizers=[], _step=Mock(side_effect=torch.OutOfMemoryError("full")))
    trainer.group.generators = [torch.Generator()]
    graph = Mock(capture_end=Mock(side_effect=at_the_end))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Trainer._capture(trainer, 1)
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
    models = [small(name, s, digits, gpu) for s in (0, 1)]
    with caplog.at_level(logging.WARNING):
        replayed = trained(models, digits, gpu, epochs=7)
    assert caplog.messages == []
    monkeypatch.setattr(trainer_module, "training_stage", lambda model, epoch: None)
    eager = trained([small(name, s, digits, gpu) for s in (0, 1)], digits, gpu, epochs=7)
    for one, other in zip(replayed[0], eager[0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_that_waits_for_the_gpu_is_trained_without_graphs(digits, caplog):
    gpu = torch.device("cuda")
    sound, waiting = small("vae", 0, digits, gpu), small("vae", 0, digits, gpu)
    forward = waiting.model.forward

    def reading(inputs, **options):
        output = forward(inputs, **options)
        float(output["loss"])
        return output

    waiting.model.forward = reading
    expected = trained([sound], digits, gpu)
    with caplog.at_level(logging.WARNING):
        found = trained([waiting], digits, gpu)
    assert len(caplog.messages) == 1
    assert "VAE is trained without CUDA graphs: called a synchronizing" in caplog.messages[0]
    assert found[0][0]["loss"] == pytest.approx(expected[0][0]["loss"], rel=1e-3)
