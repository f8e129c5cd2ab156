"""The training loop: one for every model that returns a loss from ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from hgmvae_bench.checkpoints import Checkpoint, End, TrainingState
from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.interruption import StopRequestedError
from hgmvae_bench.plugins import BenchmarkModel
from hgmvae_bench.precision import check_precision, tf32
from hgmvae_bench.randomness import Randomness
from hgmvae_bench.trainee import Trainee, below

OnEpoch = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Seeded:
    """A freshly built model with what decides its training.

    Attributes:
        model: on the device where it is to be trained.
        batch_seed: decides the order of the images.
        randomness: what the model was built under, and draws its noise from.
        checkpoint: where its training is kept from epoch to epoch, if anywhere.
    """

    model: BenchmarkModel
    batch_seed: int
    randomness: Randomness
    checkpoint: Checkpoint | None = None


@dataclass
class TrainingResult:
    """What a training leaves beside the model's weights.

    Attributes:
        history: for every loss term, its mean over the steps of each finished epoch.
        divergence: what ceased to be finite, and where; None if nothing did.
        resumed_after: the epoch after which an earlier training was taken up; 0 if none was.
        cost: of a training that was found at its end; None of one that was done here.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    divergence: str | None = None
    resumed_after: int = 0
    cost: Mapping[str, Any] | None = None


def train(
    seeded: Sequence[Seeded],
    images: Tensor,
    settings: TrainingSettings,
    *,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
) -> list[TrainingResult]:
    """Train models in place with AdamW, each as if it were alone.

    Models are called as pythae's trainer calls them, with the epoch (from 1) and the size of the
    dataset, so they behave alike under either. Several models take turns step by step: that pays
    on a GPU, which one small network cannot fill.

    Args:
        seeded: the models.
        images: uint8 (N, C, H, W), anywhere.
        settings: epochs, batch size and optimiser.
        device: where to train.
        on_epoch: called after every epoch of a model with the model's index, the epoch, and the
            mean of every loss term.

    Returns:
        A result for each model. One whose loss, or another term, became non-finite has stopped
        there.

    Raises:
        PrecisionError: if the device lacks the settings' number format.
    """
    check_precision(settings.precision, device)
    results = [TrainingResult() for _ in seeded]
    training: dict[int, Trainee] = {}
    for index, one in enumerate(seeded):
        state = None if one.checkpoint is None else one.checkpoint.load()
        if state is not None and state.end is not None:
            one.model.load_state_dict(below("model.", state.tensors))
            results[index] = TrainingResult(state.history, *state.end)
            continue
        images = images.to(device)
        training[index] = Trainee(
            one.model,
            images,
            settings,
            batch_seed=one.batch_seed,
            randomness=one.randomness,
            device=device,
        )
        if state is not None:
            training[index].restore(state.tensors)
            results[index] = TrainingResult(state.history, resumed_after=state.epoch)
    for epoch in range(1, settings.epochs + 1):
        active = {i: t for i, t in training.items() if results[i].resumed_after < epoch}
        with tf32(enabled=settings.precision == "tf32"):
            for _ in zip_longest(*(trainee.steps(epoch) for trainee in active.values())):
                pass
        means: dict[int, dict[str, float]] = {}
        for index, trainee in list(active.items()):
            means[index], fault = trainee.finish_epoch()
            if fault is not None:
                results[index].divergence = f"epoch {epoch}, {fault}"
                del training[index], active[index]
                continue
            for name, mean in means[index].items():
                results[index].history.setdefault(name, []).append(mean)
        if len(active) == 1:
            next(iter(active.values())).update()
        else:  # Models may fit something between epochs: one core each.
            with ThreadPoolExecutor() as threads:
                list(threads.map(Trainee.update_beside_others, active.values()))
        for index, trainee in active.items():
            checkpoint = seeded[index].checkpoint
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(TrainingState(epoch, results[index].history, trainee.state()))
        try:
            for index in active:
                if on_epoch is not None:
                    on_epoch(index, epoch, means[index])
        except StopRequestedError:
            for index, trainee in active.items():
                checkpoint = seeded[index].checkpoint
                if checkpoint is not None:
                    checkpoint.save(TrainingState(epoch, results[index].history, trainee.state()))
            raise
    return results


def keep(seeded: Seeded, result: TrainingResult, cost: Mapping[str, Any]) -> None:
    """Leave a model whose training is over in its checkpoint, where `train` finds it done.

    Args:
        seeded: the model.
        result: of its training.
        cost: of its training.
    """
    if seeded.checkpoint is not None:
        weights = {f"model.{name}": value for name, value in seeded.model.state_dict().items()}
        epochs = max((len(means) for means in result.history.values()), default=0)
        end = End(result.divergence, result.resumed_after, cost)
        seeded.checkpoint.save(TrainingState(epochs, result.history, weights, end))
