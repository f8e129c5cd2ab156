"""The training loop: one for every model that returns a loss from ``forward``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hgmvae_bench.grid import TrainingSettings
from hgmvae_bench.outputs import to_unit
from hgmvae_bench.plugins import BenchmarkModel

OnEpoch = Callable[[int, Mapping[str, float]], None]


@dataclass
class TrainingResult:
    """What a training leaves beside the model's weights.

    Attributes:
        history: for every loss term, its mean over the steps of each finished epoch.
        divergence: where and how the loss ceased to be finite; None if it did not.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    divergence: str | None = None


class _DivergenceError(ArithmeticError):
    """A loss or a parameter that is not finite."""


def train(
    model: BenchmarkModel,
    images: Tensor,
    settings: TrainingSettings,
    *,
    batch_seed: int,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train ``model`` in place with AdamW.

    Noise inside the model comes from torch's global generator, which the caller seeds before the
    model is built. Models are called as pythae's trainer calls them, with the epoch (from 1) and
    the size of the dataset, so they behave alike under either.

    Args:
        model: on ``device``.
        images: uint8 (N, C, H, W), anywhere; batches are moved to ``device``.
        settings: epochs, batch size and optimiser.
        batch_seed: decides the order of the images.
        device: where to train.
        on_epoch: called after every epoch with its number and the mean of every loss term.

    Returns:
        The history, and the divergence if the loss became non-finite: training stops there.
    """
    result = TrainingResult()
    objectives = _objectives(model)
    optimizers = [
        torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for parameters in objectives.values()
    ]
    order = torch.Generator().manual_seed(batch_seed)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        totals: dict[str, Tensor] = {}
        steps = 0
        try:
            for batch in _batches(images, settings.batch_size, order):
                terms = _step(
                    model,
                    to_unit(batch.to(device)),
                    objectives,
                    optimizers,
                    epoch=epoch,
                    dataset_size=len(images),
                )
                for name, value in terms.items():
                    totals[name] = totals[name] + value if name in totals else value
                steps += 1
        except _DivergenceError as error:
            result.divergence = f"epoch {epoch}, step {steps + 1}: {error}"
            return result
        model.update()
        means = {name: float(total) / steps for name, total in totals.items()}
        for name, mean in means.items():
            result.history.setdefault(name, []).append(mean)
        if on_epoch is not None:
            on_epoch(epoch, means)
    return result


def _objectives(model: BenchmarkModel) -> dict[str, list[nn.Parameter]]:
    """Parameters by the name of the loss that they follow; one loss unless the model says so."""
    objectives = getattr(model, "objectives", None)
    if objectives is None:
        return {"loss": list(model.parameters())}
    parameters: dict[str, list[nn.Parameter]] = objectives()
    return parameters


def _batches(images: Tensor, batch_size: int, order: torch.Generator) -> Iterator[Tensor]:
    """One epoch of shuffled uint8 batches, all of one size (the remainder is left out)."""
    batch_size = min(batch_size, len(images))
    permutation = torch.randperm(len(images), generator=order)
    for indices in permutation[: len(images) // batch_size * batch_size].split(batch_size):
        yield images[indices]


def _step(
    model: BenchmarkModel,
    batch: Tensor,
    objectives: Mapping[str, list[nn.Parameter]],
    optimizers: list[torch.optim.AdamW],
    *,
    epoch: int,
    dataset_size: int,
) -> dict[str, Tensor]:
    """One optimiser step; returns every scalar of the model's output, detached."""
    try:
        output = model({"data": batch}, epoch=epoch, dataset_size=dataset_size)
    except RuntimeError as error:
        # Cross-entropy refuses the NaNs of a network that has already diverged.
        if _reconstructs_finitely(model, batch):
            raise
        raise _DivergenceError("the reconstructions are not finite") from error
    for name in objectives:
        loss = float(output[name].detach())
        if not math.isfinite(loss):
            raise _DivergenceError(f"{name} is {loss}")
    for optimizer in optimizers:
        optimizer.zero_grad()
    for i, (name, parameters) in enumerate(objectives.items(), start=1):
        output[name].backward(inputs=parameters, retain_graph=i < len(objectives))
    for optimizer in optimizers:
        optimizer.step()
    return {
        name: value.detach()
        for name, value in output.items()
        if isinstance(value, Tensor) and value.ndim == 0
    }


@torch.no_grad()
def _reconstructs_finitely(model: BenchmarkModel, batch: Tensor) -> bool:
    reconstruction = model.decoder(model.latent_code(batch))["reconstruction"]
    return bool(reconstruction.isfinite().all())
