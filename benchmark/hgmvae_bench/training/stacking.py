"""What a trainer trains: one model as it is, or several of a cell as one by their stacked tensors.

Several small models take one set of operations a step where each has a first axis for the model
(``torch.func.vmap``). Their parameters and buffers then are rows of the stacked ones: between two
epochs, and for whoever saves or scores them, they are models like any other.
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
from hgmvae_bench.training.precision import Precision, autocast_networks, tf32
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.vmap_rules import VmapMode

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 1e-2}
"""By how much of its own a model's loss may differ from the one it has among others."""


class StackingError(RuntimeError):
    """Models that cannot be trained as one; the message says why."""


class ModelGroup(Protocol):
    """What a trainer trains.

    Attributes:
        models: the models.
        shape: of what holds a number for each of them: ``()`` for one alone, else ``(S,)``.
        rngs: of each, what it draws from.
        generators: that they draw from beside torch's global ones.
    """

    models: Sequence[BenchmarkModel]
    shape: tuple[int, ...]
    rngs: Sequence[RunRNG]
    generators: Sequence[torch.Generator]

    def activate_rng(self) -> AbstractContextManager[None]:
        """A block in which torch's global generators are as the models want them."""

    def objectives(self) -> dict[str, list[Tensor]]:
        """Parameters by the name of the loss that they follow."""

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """The models' scalars for images (S · B, C, H, W), of each model those of its own batch."""

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """Each model's part of a tensor that goes with a parameter."""

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """The tensor whose `rows` these are."""


class SingleModel:
    """One model, as it is.

    Args:
        model: on its device.
        rng: in force whenever it computes.
    """

    shape: tuple[int, ...] = ()
    generators: Sequence[torch.Generator] = ()

    def __init__(self, model: BenchmarkModel, rng: RunRNG) -> None:
        self.models: Sequence[BenchmarkModel] = [model]
        self.rngs: Sequence[RunRNG] = [rng]

    def activate_rng(self) -> AbstractContextManager[None]:
        """The model's own generators as torch's global ones."""
        return self.rngs[0].activate()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Its parameters by the name of the loss that they follow."""
        return model_objectives(self.models[0])

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """Its scalars for images (B, C, H, W)."""
        [model] = self.models
        return compute_loss_terms(model, partial(model, **options), images)

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """The tensor itself."""
        return [tensor]

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """The one row itself."""
        return rows[0]


class StackedModels:
    """Several models of one cell, as one.

    Each draws from generators of its own, in the order in which it would alone.

    Args:
        models: on one device; their parameters and buffers become views of the stacked ones.
        rngs: of each.

    Raises:
        StackingError: if a model is no ``torch.nn.Module``.
    """

    def __init__(self, models: Sequence[BenchmarkModel], rng: Sequence[RunRNG]) -> None:
        modules = [model for model in models if isinstance(model, nn.Module)]
        if len(modules) < len(models):
            raise StackingError(f"{type(models[0]).__name__} is no torch.nn.Module")
        self.models = models
        self.shape: tuple[int, ...] = (len(models),)
        self.generators: Sequence[torch.Generator] = [one.generator for one in rng]
        self.rngs = rng
        self._base = modules[0]
        self._parameters = _stacked([dict(module.named_parameters()) for module in modules])
        self._buffers = _stacked([dict(module.named_buffers()) for module in modules])
        device = next(iter(self._parameters.values())).device
        self._numbers = torch.arange(len(models), device=device)

    def activate_rng(self) -> AbstractContextManager[None]:
        """Nothing: every draw names its generator."""
        return nullcontext()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Stacked parameters by the name of the loss that they follow."""
        names = {id(value): name for name, value in self._base.named_parameters()}
        return {
            loss: [self._parameters[names[id(value)]] for value in parameters]
            for loss, parameters in model_objectives(self.models[0]).items()
        }

    def loss_terms(self, images: Tensor, **options: Any) -> LossTerms:
        """The models' scalars (S,) for images (S · B, C, H, W): B of each after the other."""

        def of_one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], number: Tensor, batch: Tensor
        ) -> tuple[Any, ...]:
            def call(inputs: Mapping[str, Tensor]) -> Any:
                with VmapMode(number, self.generators):
                    return functional_call(self._base, (parameters, buffers), (inputs,), options)

            return tuple(compute_loss_terms(self.models[0], call, batch))

        scalars, image_sum = vmap(of_one, randomness="error")(
            self._parameters, self._buffers, self._numbers, images.unflatten(0, (*self.shape, -1))
        )
        return LossTerms(scalars, image_sum)

    def unstack(self, tensor: Tensor) -> Sequence[Tensor]:
        """Its rows."""
        return list(tensor)

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """Stacked rows."""
        return torch.stack(list(rows))

    def verify(self, images: Tensor, precision: Precision, **options: Any) -> None:
        """Make sure that the models have the losses here that they have alone.

        All is left as it was, weights, buffers and generators; after an error the models are their
        own again.

        Args:
            images: (B, C, H, W) in [0, 1], the same for each.
            precision: of the training.
            **options: of the models' ``forward``.

        Raises:
            StackingError: if they have not, or cannot be called so.
        """
        try:
            with tf32(enabled=precision == "tf32"):
                self._compare(images, precision, **options)
        except (torch.OutOfMemoryError, StackingError):
            self._part()
            raise
        except Exception as error:
            self._part()
            raise StackingError(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _compare(self, images: Tensor, precision: Precision, **options: Any) -> None:
        objectives, tolerance = self.objectives(), TOLERANCES[precision]
        before = self._generator_states(), {n: b.clone() for n, b in self._buffers.items()}
        try:
            with autocast_networks(precision, self._base):
                found, _ = self.loss_terms(images.repeat(len(self.models), 1, 1, 1), **options)
            for loss, parameters in objectives.items():
                torch.autograd.grad(
                    found[loss].sum(), parameters, retain_graph=True, allow_unused=True
                )
            drawn = self._generator_states()
            self._restore(*before)
            alone = []
            for model, rng in zip(self.models, self.rngs, strict=True):
                single = SingleModel(model, rng)
                with single.activate_rng(), autocast_networks(precision, model), torch.no_grad():
                    alone.append(single.loss_terms(images, **options).scalars)
            for seed, (one, other) in enumerate(
                zip(drawn, self._generator_states(), strict=True), start=1
            ):
                if any(not torch.equal(one[name], other[name]) for name in one):
                    raise StackingError(f"model {seed} draws other numbers than alone")
        finally:
            self._restore(*before)
        for loss in objectives:
            for seed, (among, expected) in enumerate(
                zip(found[loss].tolist(), (own[loss].item() for own in alone), strict=True), start=1
            ):
                both_nan = math.isnan(among) and math.isnan(expected)
                near = math.isclose(among, expected, rel_tol=tolerance, abs_tol=tolerance)
                if not near and not both_nan:
                    raise StackingError(
                        f"{loss} of model {seed} is {among:.7g} among the others and "
                        f"{expected:.7g} alone"
                    )

    def _generator_states(self) -> list[dict[str, Tensor]]:
        return [one.state() for one in self.rngs]

    def _restore(
        self, generators: Sequence[Mapping[str, Tensor]], buffers: Mapping[str, Tensor]
    ) -> None:
        for one, state in zip(self.rngs, generators, strict=True):
            one.restore(state)
        for name, value in buffers.items():
            self._buffers[name].copy_(value)

    def _part(self) -> None:
        """Give each model tensors of its own again."""
        for model in self.models:
            assert isinstance(model, nn.Module)  # noqa: S101
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                tensor.data = tensor.data.clone()


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several models stacked by name; the models' own become views of the rows."""
    stacked = {}
    for name, first in rows[0].items():
        values = torch.stack([row[name].detach() for row in rows])
        for row, value in zip(rows, values, strict=True):
            row[name].data = value
        stacked[name] = values.requires_grad_(first.requires_grad)
    return stacked
