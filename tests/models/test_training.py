"""How HGMVAE is trained: stages, the fit of the mixture, checkpoints, and pythae's trainer."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from torch import Tensor

from hgmvae import HGMVAE, HGMVAESampler
from hgmvae.mixture import latent_moments

from .conftest import (
    PRIORS,
    READINGS,
    Z_PRIOR_WEIGHTS,
    build,
    every_prior,
    every_reading,
    gradients,
    images,
    run,
)

# The default, and the reading as printed, which may diverge.
CORNERS = [("responsibility", "batch_share"), ("none", "sample_raw")]


def test_stages_follow_the_epoch():
    model, data = build(warmup_epochs=2, fisher_delay=1, fisher_weight=1.0), images()

    def trained(epoch: int | None) -> tuple[float, set[str]]:
        output = run(model.train(), data, epoch=epoch)
        reached = gradients(model, output.loss)
        return output.loss.item(), {name for name in reached if name.startswith("mixture")}

    values, reached = zip(*(trained(epoch) for epoch in (1, 2, 3, 4, None)), strict=True)
    # The value is that of the whole objective in every stage.
    assert values == pytest.approx([values[0]] * len(values), rel=1e-6)
    assert not reached[0]
    assert not reached[1]
    assert reached[2]
    conditional_only = gradients(model, run(model, data, epoch=3).loss)
    with_fisher = gradients(model, run(model, data, epoch=4).loss)
    past_all = gradients(model, run(model, data).loss)
    assert not torch.equal(conditional_only["mixture.mean"], with_fisher["mixture.mean"])
    assert torch.equal(past_all["mixture.mean"], with_fisher["mixture.mean"])


def test_mixture_is_fitted_to_the_last_warmup_epoch():
    model, data = build(warmup_epochs=2), images(400)
    before = model.mixture.mean.clone()
    for epoch in (1, 2, 3):
        for batch in data.split(100):
            run(model.train(), batch, epoch=epoch)
        run(model.eval(), torch.zeros(50, 1, 4, 4), epoch=epoch)  # no training images
        model.update()
        moved = not torch.equal(model.mixture.mean, before)
        assert moved == (epoch == 2)
        before = model.mixture.mean.clone()
    codes = model.latent_code(data)
    weights = model.mixture.logits.softmax(0)
    torch.testing.assert_close(weights @ model.mixture.mean, codes.mean(0), atol=1e-4, rtol=0)


def train(model: HGMVAE, data: Tensor, epochs: range, learning_rate: float = 1e-2) -> list[float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    history = []
    for epoch in epochs:
        model.train()
        for batch in data.split(32):
            loss = model({"data": batch}, epoch=epoch, dataset_size=len(data)).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(loss.item())
        model.update()
    return history


@every_prior
def test_checkpoint_between_epochs_holds_the_whole_state(coefficient_prior):
    settings = {"coefficient_prior": coefficient_prior, "warmup_epochs": 2, "fisher_delay": 1}
    model, data = build(**settings), images(96)
    train(model, data, range(1, 3))
    other = build(**settings)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert all(isinstance(value, Tensor) for value in model.state_dict().values())
    resumed = []
    for candidate in (model, other):
        torch.manual_seed(1)
        resumed.append(train(candidate, data, range(3, 6)))
    assert resumed[0] == resumed[1]
    assert torch.equal(model.latent_code(data), other.latent_code(data))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conditional_prior", "fisher", "coefficient_prior"),
    # Each reading with one of the two priors in turn: all sixteen combinations would take minutes.
    [
        pytest.param(*reading, prior, marks=[] if reading in CORNERS else pytest.mark.extended)
        for reading, prior in zip(READINGS, itertools.cycle(PRIORS), strict=False)
    ],
)
def test_ten_times_the_learning_rate_stays_finite(conditional_prior, fisher, coefficient_prior):
    model = build(
        conditional_prior=conditional_prior,
        fisher=fisher,
        coefficient_prior=coefficient_prior,
        warmup_epochs=10,
        fisher_delay=10,
    )
    history = torch.tensor(train(model, images(128), range(1, 251)))
    assert len(history) == 1000
    # Eq. 13 as printed has no upper bound; where it diverges, the loss shows it.
    diverged = fisher == "sample_raw" and not history[-1].isfinite()
    assert diverged or history.isfinite().all()
    assert diverged or all(parameter.isfinite().all() for parameter in model.parameters())


@every_reading
@pytest.mark.parametrize("reconstruction_loss", ["bce", "mse"])
def test_values_that_are_not_finite_make_the_loss_not_finite(
    conditional_prior, fisher, reconstruction_loss
):
    model = build(
        conditional_prior=conditional_prior,
        fisher=fisher,
        reconstruction_loss=reconstruction_loss,
        warmup_epochs=1,
    )
    torch.nn.init.constant_(model.component_mean.bias, torch.nan)
    assert not run(model.train(), images(), epoch=1).loss.isfinite()
    model.update()
    assert model.mixture is None or model.mixture.mean.isfinite().all()


def test_trains_saves_and_samples_under_pythae(tmp_path: Path):
    data = images(64)
    model = build(warmup_epochs=1, fisher_delay=1)
    config = BaseTrainerConfig(
        output_dir=str(tmp_path / "training"), num_epochs=3, per_device_train_batch_size=32
    )
    TrainingPipeline(model=model, training_config=config)(data, data[:32])
    folder = next((tmp_path / "training").glob("*/final_model"))
    loaded = HGMVAE.load_from_folder(str(folder)).eval()
    assert loaded.model_config.warmup_epochs == 1
    drawn = HGMVAESampler(loaded).sample(
        num_samples=5, batch_size=2, output_dir=str(tmp_path / "drawn"), save_sampler_config=True
    )
    assert drawn.shape == (5, 1, 4, 4)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5
    torch.manual_seed(3)
    expected = loaded.decoder(loaded.sample_latent(4))["reconstruction"]
    torch.manual_seed(3)
    torch.testing.assert_close(HGMVAESampler(loaded).sample(4), expected)
    again = tmp_path / "again"
    loaded.save(str(again))
    reloaded = HGMVAE.load_from_folder(str(again)).eval()
    assert torch.equal(reloaded.latent_code(data), loaded.latent_code(data))


def test_pythae_keeps_a_model_from_after_the_warmup(tmp_path: Path):
    # pythae keeps the epoch with the lowest loss; the warm-up trains fewer terms.
    model = build(warmup_epochs=3, fisher_delay=0, **dict.fromkeys(Z_PRIOR_WEIGHTS, 0.0))
    config = BaseTrainerConfig(
        output_dir=str(tmp_path), num_epochs=6, per_device_train_batch_size=16
    )
    TrainingPipeline(model=model, training_config=config)(images(64))
    folder = next(tmp_path.glob("*/final_model"))
    best = HGMVAE.load_from_folder(str(folder))
    untouched = torch.arange(8) % 4
    fitted = best.mixture.skew.any() or not torch.equal(best.mixture.cluster, untouched)
    assert fitted


@pytest.mark.parametrize(
    ("settings", "needed", "named"),
    [
        ({"warmup_epochs": 4, "fisher_delay": 1}, 6, "Fisher term from epoch 6 .*fisher_delay = 1"),
        (
            {"warmup_epochs": 4, "fisher": "none"},
            5,
            r"conditional prior from epoch 5 .*warmup_epochs = 4\)",
        ),
        ({"warmup_epochs": 4, "conditional_prior": "none", "fisher": "none"}, 1, None),
        ({"warmup_epochs": 2, "fisher_weight": 0.0, "conditional_prior_weight": 0.0}, 1, None),
    ],
)
def test_epochs_that_end_before_a_stage_are_refused(settings, needed, named):
    model = build(**settings)
    model.check_epochs(needed)
    if named is not None:
        with pytest.raises(ValueError, match=named):
            model.check_epochs(needed - 1)


def test_the_fit_gets_the_mean_posterior_variance(monkeypatch):
    model, data, noises = build(warmup_epochs=1), images(), []
    monkeypatch.setattr(model.mixture, "fit", lambda codes, noise, *_: noises.append(noise))
    run(model.train(), data, epoch=1)
    model.update()
    posterior = model.posterior(data)
    variance = latent_moments(
        posterior.coefficient_mean, posterior.component_mean, posterior.component_log_var
    ).variance
    torch.testing.assert_close(noises[0], variance.mean(0))
