"""State of an epoch on the training device: image order and running totals.

A CUDA graph reads and writes tensors at fixed addresses. Both classes therefore allocate their
tensors once and update them in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hgmvae_bench.training.loss_terms import LossTerms


class ImageOrder:
    """Random order in which each of S models sees the images.

    Each model has a CPU generator, so that the order is the same on every device.

    Args:
        n_images: number of training images.
        batch_size: images per step and model. If it exceeds ``n_images``, a batch is all images.
        seeds: seeds of the generators, one per model.
        device: device of the indices.

    Attributes:
        n_steps: steps per epoch. An incomplete last batch is dropped.
        generators: generators of the models.
    """

    def __init__(
        self, n_images: int, batch_size: int, seeds: Sequence[int], device: torch.device
    ) -> None:
        batch_size = min(batch_size, n_images)
        self.n_steps = n_images // batch_size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._n_images = n_images
        self._indices = torch.zeros(
            self.n_steps, len(seeds), batch_size, dtype=torch.long, device=device
        )
        self._step = torch.zeros(1, dtype=torch.long, device=device)

    def shuffle(self) -> None:
        """Draw the order of the next epoch and return to its first step."""
        _, _, batch_size = self._indices.shape
        for index, generator in enumerate(self.generators):
            order = torch.randperm(self._n_images, generator=generator)
            self._indices[:, index].copy_(
                order[: self.n_steps * batch_size].view(self.n_steps, batch_size)
            )
        self._step.zero_()

    def next_batch(self) -> Tensor:
        """Image indices (S · B,) of the current step, model by model. Advances one step."""
        indices = self._indices.index_select(0, self._step).flatten()
        self._step.add_(1)
        return indices

    def step_back(self) -> None:
        """Return to the previous step."""
        self._step.sub_(1)


class EpochTotals:
    """Sums of the loss terms over the steps of an epoch, and the first non-finite step.

    Args:
        shape: ``()`` for one model, ``(S,)`` for S stacked models.
        objectives: names of the losses, which must be finite in every step.
        model_name: name for error messages.
        device: device of the sums.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        objectives: Iterable[str],
        model_name: str,
        device: torch.device,
    ) -> None:
        self._shape = shape
        self._objectives = list(objectives)
        self._model_name = model_name
        self._names: list[str] = []
        self._sums = torch.zeros(*shape, 0, device=device)
        self._finite = torch.ones(shape, dtype=torch.bool, device=device)
        self._finite_steps = torch.zeros(shape, dtype=torch.long, device=device)

    def reset(self) -> None:
        """Start a new epoch."""
        self._finite_steps.zero_()
        self._sums.zero_()
        self._finite.fill_(True)

    def forget_terms(self) -> None:
        """Allow the next step to return other loss terms than the last one."""
        self._names = []

    @torch.no_grad()
    def add(self, terms: LossTerms) -> None:
        """Add the terms of one step.

        Raises:
            ValueError: if the names differ from those of the epoch's first step.
        """
        scalars = {name: value.float() for name, value in terms.scalars.items()}
        if not self._names:
            self._names = list(scalars)
            self._sums = torch.zeros(*self._shape, len(scalars), device=self._sums.device)
        if self._names != list(scalars):
            raise ValueError(
                f"{self._model_name} returns other loss terms ({', '.join(scalars)}) than in "
                f"the epoch's first step ({', '.join(self._names)})"
            )
        self._sums.add_(torch.stack(list(scalars.values()), -1))
        checked = [*(scalars[name] for name in self._objectives), terms.image_sum]
        self._finite.logical_and_(torch.stack(checked, -1).isfinite().all(-1))
        self._finite_steps.add_(self._finite)

    def any_finite(self) -> bool:
        """Whether some model has had finite losses in all steps so far. Waits for the device."""
        return bool(self._finite.any())

    def read(self, n_steps: int) -> list[tuple[dict[str, float], int | None]]:
        """Mean of each loss term per model, and its first non-finite step (from 1) or None."""
        finite = self._finite.view(-1).tolist()
        finite_steps = self._finite_steps.view(-1).tolist()
        means = (self._sums.double() / n_steps).view(len(finite), -1).tolist()
        return [
            (dict(zip(self._names, values, strict=True)), None if is_finite else steps + 1)
            for is_finite, steps, values in zip(finite, finite_steps, means, strict=True)
        ]
