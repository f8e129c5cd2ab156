"""Groups of models that one trainer trains: a single model, or several stacked ones.

Stacked models run one set of operations per step, with a leading axis for the model
(``torch.func.vmap``). Each model's parameters and buffers are rows of the stacked tensors, so that
outside of a training step it can be used, saved and scored like any other model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hgmvae_bench.plugins.protocols import BenchmarkModel
from hgmvae_bench.training.loss_terms import LossTerms, compute_loss_terms, model_objectives
from hgmvae_bench.training.precision import autocast_networks, tf32
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.vmap_rules import VmapMode
from hgmvae_bench.utils.bounds import Precision

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 1e-2}
"""Maximum relative difference between a model's stacked and individual loss."""


class StackingError(RuntimeError):
    """Reason why models cannot be stacked."""


class ModelGroup(Protocol):
    """One model or several stacked ones, behind one interface.

    Attributes:
        models: the models.
        shape: shape of values per model: ``()`` for one model, ``(S,)`` for S stacked ones.
        rngs: random state of each model.
        generators: generators that are used explicitly, beside torch's global ones.
    """

    models: Sequence[BenchmarkModel]
    shape: tuple[int, ...]
    rngs: Sequence[RunRNG]
    generators: Sequence[torch.Generator]

    def activate_rng(self) -> AbstractContextManager[None]:
        """Context in which torch's global generators are set for a training step."""

    def objectives(self) -> dict[str, list[Tensor]]:
        """Trained parameters by the name of their loss."""

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """Loss terms of images (S · B, C, H, W): B images of each model, one after the other."""

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """Split a tensor that belongs to a parameter into each model's part."""

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join the models' tensors; the inverse of `unstack`."""


class SingleModel:
    """Group of one model, which is called directly.

    Args:
        model: model on its device.
        rng: random state of the model.
    """

    shape: tuple[int, ...] = ()
    generators: Sequence[torch.Generator] = ()

    def __init__(self, model: BenchmarkModel, rng: RunRNG) -> None:
        self.models: Sequence[BenchmarkModel] = [model]
        self.rngs: Sequence[RunRNG] = [rng]

    def activate_rng(self) -> AbstractContextManager[None]:
        """Context in which the model's random state is torch's global one."""
        return self.rngs[0].activate()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Trained parameters by the name of their loss."""
        return model_objectives(self.models[0])

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """Loss terms of images (B, C, H, W)."""
        [model] = self.models
        return compute_loss_terms(model, partial(model, **options), images)

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return the tensor in a list."""
        return [tensor]

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the only tensor."""
        return tensors[0]


class StackedModels:
    """Group of S models of one cell, called as one by ``torch.func.vmap``.

    Each model draws from its own generator, in the same order as if it were trained alone.

    Args:
        models: models on one device. Their parameters and buffers become views of stacked tensors.
        rngs: random state of each model.

    Attributes:
        parameters: stacked parameters (S, ...) by name.

    Raises:
        StackingError: if a model is not a ``torch.nn.Module``.
    """

    def __init__(self, models: Sequence[BenchmarkModel], rngs: Sequence[RunRNG]) -> None:
        modules = [model for model in models if isinstance(model, nn.Module)]
        if len(modules) < len(models):
            raise StackingError(f"{type(models[0]).__name__} is not a torch.nn.Module")
        self.models = models
        self.shape: tuple[int, ...] = (len(models),)
        self.generators: Sequence[torch.Generator] = [rng.generator for rng in rngs]
        self.rngs = rngs
        self._base = modules[0]
        self.parameters = _stack_in_place([dict(m.named_parameters()) for m in modules])
        self._buffers = _stack_in_place([dict(m.named_buffers()) for m in modules])
        device = next(iter(self.parameters.values())).device
        self._indices = torch.arange(len(models), device=device)

    def activate_rng(self) -> AbstractContextManager[None]:
        """Empty context: every draw names its generator."""
        return nullcontext()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Stacked parameters by the name of their loss."""
        names = {id(value): name for name, value in self._base.named_parameters()}
        return {
            loss: [self.parameters[names[id(value)]] for value in parameters]
            for loss, parameters in model_objectives(self.models[0]).items()
        }

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """Loss terms (S,) of images (S · B, C, H, W): B of each model, one after the other."""

        def of_one_model(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], index: Tensor, batch: Tensor
        ) -> tuple[Any, ...]:
            def call(inputs: Mapping[str, Tensor]) -> Any:
                with VmapMode(index, self.generators):
                    return functional_call(self._base, (parameters, buffers), (inputs,), options)

            return tuple(compute_loss_terms(self.models[0], call, batch))

        scalars, image_sum = vmap(of_one_model, randomness="error")(
            self.parameters, self._buffers, self._indices, images.unflatten(0, (*self.shape, -1))
        )
        return LossTerms(scalars, image_sum)

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """Split a tensor (S, ...) into its rows."""
        return list(tensor)

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack tensors to (S, ...)."""
        return torch.stack(list(tensors))

    def verify(self, images: Tensor, precision: Precision, **options: Any) -> None:
        """Check that every model has the same losses and draws when stacked and alone.

        Weights, buffers and generators are unchanged afterwards. After an error the models no
        longer share memory.

        Args:
            images: (B, C, H, W) in [0, 1], given to every model.
            precision: precision of the training.
            **options: keyword arguments of the models' ``forward``.

        Raises:
            StackingError: if a loss or a draw differs, or the stacked call fails.
        """
        try:
            with tf32(enabled=precision == "tf32"):
                self._compare_with_individual(images, precision, **options)
        except (torch.OutOfMemoryError, StackingError):
            self._unshare_tensors()
            raise
        except Exception as error:
            self._unshare_tensors()
            raise StackingError(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _compare_with_individual(
        self, images: Tensor, precision: Precision, **options: Any
    ) -> None:
        objectives = self.objectives()
        before = self._rng_states(), {n: b.clone() for n, b in self._buffers.items()}
        try:
            with autocast_networks(precision, self._base):
                stacked, _ = self.loss_terms(images.repeat(len(self.models), 1, 1, 1), **options)
            for loss, parameters in objectives.items():  # The backward pass may fail, too.
                torch.autograd.grad(
                    stacked[loss].sum(), parameters, retain_graph=True, allow_unused=True
                )
            stacked_states = self._rng_states()
            self._restore(*before)
            individual = self._individual_losses(images, precision, **options)
            _check_same_draws(stacked_states, self._rng_states())
        finally:
            self._restore(*before)
        for loss in objectives:
            expected = [scalars[loss].item() for scalars in individual]
            _check_same_losses(loss, stacked[loss].tolist(), expected, TOLERANCES[precision])

    def _individual_losses(
        self, images: Tensor, precision: Precision, **options: Any
    ) -> list[dict[str, Tensor]]:
        """Loss terms of each model called alone."""
        losses = []
        for model, rng in zip(self.models, self.rngs, strict=True):
            single = SingleModel(model, rng)
            with single.activate_rng(), autocast_networks(precision, model), torch.no_grad():
                losses.append(single.loss_terms(images, **options).scalars)
        return losses

    def _rng_states(self) -> list[dict[str, Tensor]]:
        return [rng.state() for rng in self.rngs]

    def _restore(
        self, rng_states: Sequence[Mapping[str, Tensor]], buffers: Mapping[str, Tensor]
    ) -> None:
        for rng, state in zip(self.rngs, rng_states, strict=True):
            rng.restore(state)
        for name, value in buffers.items():
            self._buffers[name].copy_(value)

    def _unshare_tensors(self) -> None:
        """Give each model its own memory again."""
        for model in self.models:
            assert isinstance(model, nn.Module)  # noqa: S101
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.data = tensor.data.clone()


def _check_same_draws(
    stacked: Sequence[Mapping[str, Tensor]], individual: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise StackingError if a generator was left in different states."""
    for number, (one, other) in enumerate(zip(stacked, individual, strict=True), start=1):
        if any(not torch.equal(one[name], other[name]) for name in one):
            raise StackingError(f"model {number} draws other random numbers than alone")


def _check_same_losses(
    loss: str, stacked: Sequence[float], individual: Sequence[float], tolerance: float
) -> None:
    """Raise StackingError if a model's losses differ by more than a tolerance."""
    for number, (found, expected) in enumerate(zip(stacked, individual, strict=True), start=1):
        if math.isnan(found) and math.isnan(expected):
            continue
        if not math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance):
            raise StackingError(
                f"{loss} of model {number} is {found:.7g} stacked and {expected:.7g} alone"
            )


def _stack_in_place(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack tensors of several models by name, and make the originals views of the rows."""
    stacked = {}
    for name, first in tensors[0].items():
        values = torch.stack([of_model[name].detach() for of_model in tensors])
        for of_model, value in zip(tensors, values, strict=True):
            of_model[name].data = value
        stacked[name] = values.requires_grad_(first.requires_grad)
    return stacked
