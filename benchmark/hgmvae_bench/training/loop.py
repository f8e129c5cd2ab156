"""The training loop: one for every model that returns a loss from ``forward``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from hgmvae_bench.data.pixels import to_unit
from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.training.checkpoints import Checkpoint, TrainingEnd, TrainingState
from hgmvae_bench.training.precision import check_precision, tf32
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel, StackedModels, StackingError
from hgmvae_bench.training.trainer import Trainer, select_prefix, training_stage
from hgmvae_bench.utils.errors import StopRequestedError

logger = logging.getLogger(__name__)

EpochCallback = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class SeededModel:
    """A freshly built model with what decides its training.

    Attributes:
        model: on the device where it is to be trained.
        batch_seed: decides the order of the images.
        rng: what the model was built under, and draws its noise from.
        checkpoint: where its training is kept from epoch to epoch, if anywhere.
    """

    model: BenchmarkModel
    batch_seed: int
    rng: RunRNG
    checkpoint: Checkpoint | None = None


@dataclass
class TrainingResult:
    """What a training leaves beside the model's weights.

    Attributes:
        history: for every loss term, its mean over the steps of each finished epoch.
        divergence: what ceased to be finite, and where; None if nothing did.
        resumed_after: the epoch after which an earlier training was taken up; 0 if none was.
        cost: of a training that was found at its end; None of one that was done here.
        stacked: whether the model was one of a `stacking.StackedModels`.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    divergence: str | None = None
    resumed_after: int = 0
    cost: Mapping[str, Any] | None = None
    stacked: bool = False


@dataclass(frozen=True)
class _Group:
    """One model, or several that are trained as one.

    Attributes:
        indices: of its models, as `train` counts them.
        trainer: what trains them.
        after: the epoch after which they go on; 0 if they begin.
    """

    indices: list[int]
    trainer: Trainer
    after: int


def train(
    seeded: Sequence[SeededModel],
    images: Tensor,
    settings: TrainingSettings,
    *,
    device: torch.device,
    stacked: bool = False,
    on_epoch: EpochCallback | None = None,
) -> list[TrainingResult]:
    """Train models in place with AdamW, each as if it were alone.

    Models are called as pythae's trainer calls them, with the epoch (from 1) and the size of the
    dataset, so they behave alike under either. Several models take turns step by step, or take
    each step as one: either pays on a GPU, which one small network cannot fill.

    Args:
        seeded: the models.
        images: uint8 (N, C, H, W), anywhere.
        settings: epochs, batch size and optimiser.
        device: where to train.
        stacked: whether models of one cell are trained as one, `stacking.StackedModels`. Each
            differs then from what it would be alone by rounding. Those that cannot be take turns,
            and a warning says why.
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
    unfinished: dict[int, TrainingState | None] = {}
    for index, one in enumerate(seeded):
        state = None if one.checkpoint is None else one.checkpoint.load()
        if state is None:
            unfinished[index] = None
        elif state.end is None:
            unfinished[index] = state
            results[index] = TrainingResult(state.history, resumed_after=state.epoch)
        else:
            one.model.load_state_dict(select_prefix("model.", state.tensors))
            results[index] = TrainingResult(state.history, *state.end)
    if not unfinished:
        return results
    groups = _grouped(seeded, unfinished, images.to(device), settings, device, stacked=stacked)
    for group in groups:
        for index in group.indices:
            results[index].stacked = len(group.indices) > 1
    for epoch in range(1, settings.epochs + 1):
        active = [
            group
            for group in groups
            if group.after < epoch and any(results[i].divergence is None for i in group.indices)
        ]
        with tf32(enabled=settings.precision == "tf32"):
            for _ in zip_longest(*(group.trainer.steps(epoch) for group in active)):
                pass
        means: dict[int, dict[str, float]] = {}
        for group in active:
            for index, (terms, fault) in zip(
                group.indices, group.trainer.finish_epoch(), strict=True
            ):
                if results[index].divergence is not None:
                    continue
                if fault is not None:
                    results[index].divergence = f"epoch {epoch}, {fault}"
                    continue
                means[index] = terms
                for name, mean in terms.items():
                    results[index].history.setdefault(name, []).append(mean)
        _update([(g.trainer, n) for g in active for n, i in enumerate(g.indices) if i in means])
        _save(active, means, seeded, results, epoch, due=True)
        try:
            for index, terms in sorted(means.items()):
                if on_epoch is not None:
                    on_epoch(index, epoch, terms)
        except StopRequestedError:
            _save(active, means, seeded, results, epoch, due=False)
            raise
    return results


def _grouped(
    seeded: Sequence[SeededModel],
    unfinished: Mapping[int, TrainingState | None],
    images: Tensor,
    settings: TrainingSettings,
    device: torch.device,
    *,
    stacked: bool,
) -> list[_Group]:
    """What trains the models, each where it left off; as one those that left off alike."""
    alike: dict[int, list[int]] = {}
    for index, state in unfinished.items():
        alike.setdefault(0 if state is None else state.epoch, []).append(index)
    groups = []
    for after, indices in alike.items():
        stack = (
            _stack([seeded[i] for i in indices], images, settings, after + 1)
            if stacked and len(indices) > 1
            else None
        )
        parts = [[i] for i in indices] if stack is None else [indices]
        for part in parts:
            [first, *_] = members = [seeded[i] for i in part]
            trainer = Trainer(
                SingleModel(first.model, first.rng) if stack is None else stack,
                images,
                settings,
                batch_seeds=[one.batch_seed for one in members],
                device=device,
            )
            if after:
                states = [unfinished[i] for i in part]
                trainer.restore([state.tensors for state in states if state is not None])
            groups.append(_Group(part, trainer, after))
    return groups


def _stack(
    seeded: Sequence[SeededModel], images: Tensor, settings: TrainingSettings, epoch: int
) -> StackedModels | None:
    """Models as one for all epochs from ``epoch`` on, if they can be."""
    model = seeded[0].model
    try:
        # Of each stage its first epoch.
        stages = {
            training_stage(model, later): later for later in range(settings.epochs, epoch - 1, -1)
        }
        if None in stages:
            reason = f"it does not say that the steps of epoch {stages[None]} are alike"
            raise StackingError(reason)
        stack = StackedModels([one.model for one in seeded], [one.rng for one in seeded])
        batch = to_unit(images[: settings.batch_size])
        for first in sorted(stages.values()):
            stack.verify(batch, settings.precision, epoch=first, dataset_size=len(images))
    except StackingError as reason:
        name = type(model).__name__
        logger.warning("%s: %d seeds take turns, not as one: %s", name, len(seeded), reason)
        return None
    return stack


def _update(models: Sequence[tuple[Trainer, int]]) -> None:
    """TrainingEnd an epoch of models, each given by its trainer and its place there."""
    if len(models) == 1:
        [(trainer, place)] = models
        trainer.update(place)
        return
    with ThreadPoolExecutor() as threads:  # They may fit something: one core each.
        list(threads.map(lambda model: model[0].update_in_thread(model[1]), models))


def _save(
    groups: Sequence[_Group],
    indices: Collection[int],
    seeded: Sequence[SeededModel],
    results: Sequence[TrainingResult],
    epoch: int,
    *,
    due: bool,
) -> None:
    """Leave models in their checkpoints after an epoch: all, or those whose are due."""
    for group in groups:
        checkpoints = {
            index: checkpoint
            for index in group.indices
            if index in indices and (checkpoint := seeded[index].checkpoint) is not None
        }
        if not any(checkpoint.is_due() or not due for checkpoint in checkpoints.values()):
            continue
        for index, state in zip(group.indices, group.trainer.states(), strict=True):
            if index in checkpoints and (checkpoints[index].is_due() or not due):
                checkpoints[index].save(TrainingState(epoch, results[index].history, state))


def save_trained(seeded: SeededModel, result: TrainingResult, cost: Mapping[str, Any]) -> None:
    """Leave a model whose training is over in its checkpoint, where `train` finds it done.

    Args:
        seeded: the model.
        result: of its training.
        cost: of its training.
    """
    if seeded.checkpoint is not None:
        weights = {f"model.{name}": value for name, value in seeded.model.state_dict().items()}
        epochs = max((len(means) for means in result.history.values()), default=0)
        end = TrainingEnd(result.divergence, result.resumed_after, cost)
        seeded.checkpoint.save(TrainingState(epochs, result.history, weights, end))
