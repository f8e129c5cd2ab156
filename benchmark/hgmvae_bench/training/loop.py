"""Training loop for one or several models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from hgmvae_bench.training.stacking import ModelGroup, SingleModel, StackedModels, StackingError
from hgmvae_bench.training.trainer import Trainer, select_prefix, training_stage
from hgmvae_bench.utils.errors import StopRequestedError

logger = logging.getLogger(__name__)

EpochCallback = Callable[[int, int, Mapping[str, float]], None]
"""Called after an epoch with the model's index, the epoch (from 1) and the mean loss terms."""


@dataclass(frozen=True)
class SeededModel:
    """A newly built model with the seeds that decide its training.

    Attributes:
        model: model on the training device.
        batch_seed: seed of the image order.
        rng: generators that the model was built with and draws its noise from.
        checkpoint: checkpoint that the training resumes from and writes to; None for neither.
    """

    model: BenchmarkModel
    batch_seed: int
    rng: RunRNG
    checkpoint: Checkpoint | None = None


@dataclass
class TrainingResult:
    """Outcome of a training, beside the weights in the model.

    Attributes:
        history: mean of each loss term over the steps of each finished epoch.
        divergence: first non-finite value and its place; None if all are finite.
        resumed_after: epochs that were finished before the training was resumed; 0 if it was not.
        cost: cost of a finished training that was loaded from its checkpoint; otherwise None.
        stacked: whether the model was trained in a stack with others.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    divergence: str | None = None
    resumed_after: int = 0
    cost: Mapping[str, Any] | None = None
    stacked: bool = False


@dataclass
class _ModelTraining:
    """Training of one model.

    Attributes:
        index: position of the model in the arguments of `train`.
        seeded: the model and its seeds.
        saved: state from the checkpoint; None if there is none.
        result: outcome so far.
        means: mean loss terms of the last epoch; None once the model has diverged.
    """

    index: int
    seeded: SeededModel
    saved: TrainingState | None
    result: TrainingResult
    means: dict[str, float] | None = None

    @classmethod
    def load(cls, index: int, seeded: SeededModel) -> _ModelTraining:
        """Read the checkpoint, and the weights too if the training has ended."""
        saved = None if seeded.checkpoint is None else seeded.checkpoint.load()
        if saved is None:
            result = TrainingResult()
        elif saved.end is None:
            result = TrainingResult(saved.history, resumed_after=saved.epoch)
        else:
            seeded.model.load_state_dict(select_prefix("model.", saved.tensors))
            result = TrainingResult(saved.history, *saved.end)
        return cls(index, seeded, saved, result)

    @property
    def has_ended(self) -> bool:
        """Whether the checkpoint holds the end of the training."""
        return self.saved is not None and self.saved.end is not None

    @property
    def start(self) -> int:
        """Number of epochs in the checkpoint."""
        return 0 if self.saved is None else self.saved.epoch

    def record_epoch(self, epoch: int, means: dict[str, float], error: str | None) -> None:
        """Add an epoch to the result, unless the model has diverged.

        Raises:
            ValueError: if the loss terms are not those of the earlier epochs. A history has one
                value of every term per epoch.
        """
        self.means = None
        if self.result.divergence is not None:
            return
        if error is not None:
            self.result.divergence = f"epoch {epoch}, {error}"
            return
        history = self.result.history
        if history and history.keys() != means.keys():
            changes = {"new": means.keys() - history, "missing": history.keys() - means}
            listed = [f"{kind}: {', '.join(sorted(t))}" for kind, t in changes.items() if t]
            raise ValueError(
                f"{type(self.seeded.model).__name__} returns other loss terms in epoch {epoch} "
                f"than before ({'; '.join(listed)}); return every term in every epoch, as 0 while "
                "it is unused"
            )
        self.means = means
        for name, mean in means.items():
            history.setdefault(name, []).append(mean)

    def should_save(self, *, only_due: bool) -> bool:
        """Whether to write a checkpoint after the last epoch."""
        checkpoint = self.seeded.checkpoint
        if checkpoint is None or self.means is None:
            return False
        return checkpoint.is_due() or not only_due

    def save(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, if the model has one."""
        if self.seeded.checkpoint is not None:
            self.seeded.checkpoint.save(TrainingState(epoch, self.result.history, tensors))


@dataclass(frozen=True)
class _TrainingGroup:
    """Models of one trainer: a single one or a stack.

    Attributes:
        trainer: trainer of the models.
        trainings: their trainings, in the trainer's order.
    """

    trainer: Trainer
    trainings: Sequence[_ModelTraining]

    def is_active(self, epoch: int) -> bool:
        """Whether some model still has to be trained in an epoch."""
        return self.trainings[0].start < epoch and any(
            training.result.divergence is None for training in self.trainings
        )

    def record_epoch(self, epoch: int) -> None:
        """Add the epoch that the trainer has run to the models' results."""
        outcomes = self.trainer.finish_epoch()
        for training, (means, error) in zip(self.trainings, outcomes, strict=True):
            training.record_epoch(epoch, means, error)

    def save(self, epoch: int, *, only_due: bool) -> None:
        """Write the checkpoints of models that have not diverged.

        Args:
            epoch: number of finished epochs.
            only_due: skip checkpoints whose interval has not elapsed.
        """
        to_save = [training.should_save(only_due=only_due) for training in self.trainings]
        if any(to_save):
            for training, tensors, chosen in zip(
                self.trainings, self.trainer.states(), to_save, strict=True
            ):
                if chosen:
                    training.save(epoch, tensors)


def train(
    models: Sequence[SeededModel],
    images: Tensor,
    settings: TrainingSettings,
    *,
    device: torch.device,
    stacked: bool = False,
    on_epoch: EpochCallback | None = None,
) -> list[TrainingResult]:
    """Train models in place with AdamW; each ends up as if it were trained alone.

    Models are called as by pythae's trainer, with the epoch (from 1) and the size of the dataset.
    Several models are trained in alternating steps or stacked. Both pay off on a GPU, which one
    small network does not fill.

    Args:
        models: the models, built and not yet trained.
        images: training images, uint8 (N, C, H, W), on any device.
        settings: epochs, batch size, precision and optimiser.
        device: training device.
        stacked: train models of one cell as a `StackedModels`. Each model then differs from one
            that is trained alone by rounding. Models that cannot be stacked are trained in
            alternating steps, with a warning that gives the reason.
        on_epoch: called after every epoch of a model that has not diverged.

    Returns:
        A result for each model. A model stops when its loss or another term becomes non-finite.

    Raises:
        PrecisionError: if the device does not support the precision.
    """
    check_precision(settings.precision, device)
    trainings = [_ModelTraining.load(index, model) for index, model in enumerate(models)]
    unfinished = [training for training in trainings if not training.has_ended]
    if unfinished:
        groups = _make_groups(unfinished, images.to(device), settings, device, stacked=stacked)
        for epoch in range(1, settings.epochs + 1):
            active = [group for group in groups if group.is_active(epoch)]
            _train_epoch(active, epoch, settings, on_epoch)
    return [training.result for training in trainings]


def _train_epoch(
    groups: Sequence[_TrainingGroup],
    epoch: int,
    settings: TrainingSettings,
    on_epoch: EpochCallback | None,
) -> None:
    """Train all groups for an epoch in alternating steps, save what is due and report."""
    with tf32(enabled=settings.precision == "tf32"):
        for _ in zip_longest(*(group.trainer.steps(epoch) for group in groups)):
            pass
    for group in groups:
        group.record_epoch(epoch)
    _update_models(groups)
    for group in groups:
        group.save(epoch, only_due=True)
    trainings = (training for group in groups for training in group.trainings)
    try:
        for training in sorted(trainings, key=lambda training: training.index):
            if on_epoch is not None and training.means is not None:
                on_epoch(training.index, epoch, training.means)
    except StopRequestedError:
        for group in groups:
            group.save(epoch, only_due=False)
        raise


def _update_models(groups: Sequence[_TrainingGroup]) -> None:
    """Call ``update`` of every model that has not diverged."""
    updates = [
        (group.trainer, index)
        for group in groups
        for index, training in enumerate(group.trainings)
        if training.means is not None
    ]
    if len(updates) == 1:
        [(trainer, index)] = updates
        trainer.update(index)
        return
    with ThreadPoolExecutor() as threads:  # Some models fit a mixture, which takes a core each.
        list(threads.map(lambda update: update[0].update_in_thread(update[1]), updates))


def _make_groups(
    trainings: Sequence[_ModelTraining],
    images: Tensor,
    settings: TrainingSettings,
    device: torch.device,
    *,
    stacked: bool,
) -> list[_TrainingGroup]:
    """Create the trainers, each restored from its checkpoints.

    Only models with equally many finished epochs are stacked.
    """
    by_start: dict[int, list[_ModelTraining]] = {}
    for training in trainings:
        by_start.setdefault(training.start, []).append(training)
    groups: list[tuple[ModelGroup, list[_ModelTraining]]] = []
    for start, members in by_start.items():
        models = [training.seeded for training in members]
        stack = _stack(models, images, settings, start + 1) if stacked and len(models) > 1 else None
        if stack is None:
            groups += [(SingleModel(t.seeded.model, t.seeded.rng), [t]) for t in members]
        else:
            groups.append((stack, members))
            for training in members:
                training.result.stacked = True
    return [
        _TrainingGroup(_make_trainer(group, members, images, settings, device), members)
        for group, members in groups
    ]


def _make_trainer(
    group: ModelGroup,
    trainings: Sequence[_ModelTraining],
    images: Tensor,
    settings: TrainingSettings,
    device: torch.device,
) -> Trainer:
    """Create the trainer of a group and restore it from the models' checkpoints."""
    batch_seeds = [training.seeded.batch_seed for training in trainings]
    trainer = Trainer(group, images, settings, batch_seeds=batch_seeds, device=device)
    saved = [training.saved.tensors for training in trainings if training.saved is not None]
    if saved:
        trainer.restore(saved)
    return trainer


def _stack(
    models: Sequence[SeededModel], images: Tensor, settings: TrainingSettings, start_epoch: int
) -> StackedModels | None:
    """Stack models; None, with a warning, if some epoch from ``start_epoch`` on rules it out."""
    model = models[0].model
    try:
        # The first epoch of each stage.
        epochs = range(settings.epochs, start_epoch - 1, -1)
        first_epochs = {training_stage(model, epoch): epoch for epoch in epochs}
        if None in first_epochs:
            raise StackingError(f"the model has no stage for epoch {first_epochs[None]}")
        stack = StackedModels([one.model for one in models], [one.rng for one in models])
        batch = to_unit(images[: settings.batch_size])
        for epoch in sorted(first_epochs.values()):
            stack.verify(batch, settings.precision, epoch=epoch, dataset_size=len(images))
    except StackingError as reason:
        logger.warning(
            "%s: %d seeds are trained in alternating steps, not stacked: %s",
            type(model).__name__,
            len(models),
            reason,
        )
        return None
    return stack


def save_trained(seeded: SeededModel, result: TrainingResult, cost: Mapping[str, Any]) -> None:
    """Write a trained model to its checkpoint, from which `train` loads it as finished.

    Args:
        seeded: the trained model. Without a checkpoint, nothing is written.
        result: result of its training.
        cost: cost of its training, as measured by
            `hgmvae_bench.execution.resource_meter.ResourceMeter`.
    """
    if seeded.checkpoint is not None:
        weights = {f"model.{name}": value for name, value in seeded.model.state_dict().items()}
        epochs = max((len(means) for means in result.history.values()), default=0)
        end = TrainingEnd(result.divergence, result.resumed_after, cost)
        seeded.checkpoint.save(TrainingState(epochs, result.history, weights, end))
