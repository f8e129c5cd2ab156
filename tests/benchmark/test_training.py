import math

import pytest
import torch
from pythae.models.base.base_utils import ModelOutput
from torch import nn

from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.networks import Network
from hgmvae_bench.plugins import MODELS
from hgmvae_bench.training import train

CPU = torch.device("cpu")


class Mean(nn.Module):
    """Learns the mean image: the squared loss has its minimum there."""

    def __init__(self, losses=None):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
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
    return train(model, data, TrainingSettings(**settings), batch_seed=0, device=CPU)


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
    assert result.divergence == "epoch 2, step 2: loss is inf"
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
        train(model, digits.train_images[:256], settings, batch_seed=batch_seed, device=CPU)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
