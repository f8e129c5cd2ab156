"""What a trainee trains: one model as it is, or several of a cell as one by their stacked tensors.

Several small models take one set of operations a step where each has a first axis for the model
(``torch.func.vmap``). Their parameters and buffers then are rows of the stacked ones: between two
epochs, and for whoever saves or scores them, they are models like any other.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from hgmvae_bench.plugins import BenchmarkModel
from hgmvae_bench.precision import Precision, networks_in, tf32
from hgmvae_bench.randomness import Randomness

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 1e-2}
"""By how much of its own a model's loss may differ from the one it has among others."""


class StackingError(RuntimeError):
    """Models that cannot be trained as one; the message says why."""


class Terms(dict[str, Tensor]):
    """The scalars that models return for a batch, a number for each model.

    Attributes:
        brightness: a sum over all decoded images: finite if, and only if, they all are.
    """

    brightness: Tensor


class Models(Protocol):
    """What a trainee trains.

    Attributes:
        members: the models.
        shape: of what holds a number for each of them: ``()`` for one alone, else ``(S,)``.
        randomness: of each, what it draws from.
        generators: that they draw from beside torch's global ones.
    """

    members: Sequence[BenchmarkModel]
    shape: tuple[int, ...]
    randomness: Sequence[Randomness]
    generators: Sequence[torch.Generator]

    def in_force(self) -> AbstractContextManager[None]:
        """A block in which torch's global generators are as the models want them."""

    def objectives(self) -> dict[str, list[Tensor]]:
        """Parameters by the name of the loss that they follow."""

    def terms(self, images: Tensor, **options: Any) -> Terms:
        """The models' scalars for images (S · B, C, H, W), of each model those of its own batch."""

    def rows(self, tensor: Tensor) -> Sequence[Tensor]:
        """Each model's part of a tensor that goes with a parameter."""

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """The tensor whose `rows` these are."""


class Single:
    """One model, as it is.

    Args:
        model: on its device.
        randomness: in force whenever it computes.
    """

    shape: tuple[int, ...] = ()
    generators: Sequence[torch.Generator] = ()

    def __init__(self, model: BenchmarkModel, randomness: Randomness) -> None:
        self.members: Sequence[BenchmarkModel] = [model]
        self.randomness: Sequence[Randomness] = [randomness]

    def in_force(self) -> AbstractContextManager[None]:
        """The model's own generators as torch's global ones."""
        return self.randomness[0]()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Its parameters by the name of the loss that they follow."""
        return _objectives(self.members[0])

    def terms(self, images: Tensor, **options: Any) -> Terms:
        """Its scalars for images (B, C, H, W)."""
        [model] = self.members
        return _terms(model, partial(model, **options), images)

    def rows(self, tensor: Tensor) -> Sequence[Tensor]:
        """The tensor itself."""
        return [tensor]

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """The one row itself."""
        return rows[0]


class Stack:
    """Several models of one cell, as one.

    Each draws from generators of its own, in the order in which it would alone.

    Args:
        models: on one device; their parameters and buffers become views of the stacked ones.
        randomness: of each.

    Raises:
        StackingError: if a model is no ``torch.nn.Module``.
    """

    def __init__(self, models: Sequence[BenchmarkModel], randomness: Sequence[Randomness]) -> None:
        modules = [model for model in models if isinstance(model, nn.Module)]
        if len(modules) < len(models):
            raise StackingError(f"{type(models[0]).__name__} is no torch.nn.Module")
        self.members = models
        self.shape: tuple[int, ...] = (len(models),)
        self.generators: Sequence[torch.Generator] = [one.generator for one in randomness]
        self.randomness = randomness
        self._base = modules[0]
        self._parameters = _stacked([dict(module.named_parameters()) for module in modules])
        self._buffers = _stacked([dict(module.named_buffers()) for module in modules])
        device = next(iter(self._parameters.values())).device
        self._lanes = torch.arange(len(models), device=device)

    def in_force(self) -> AbstractContextManager[None]:
        """Nothing: every draw names its generator."""
        return nullcontext()

    def objectives(self) -> dict[str, list[Tensor]]:
        """Stacked parameters by the name of the loss that they follow."""
        names = {id(value): name for name, value in self._base.named_parameters()}
        return {
            loss: [self._parameters[names[id(value)]] for value in parameters]
            for loss, parameters in _objectives(self.members[0]).items()
        }

    def terms(self, images: Tensor, **options: Any) -> Terms:
        """The models' scalars (S,) for images (S · B, C, H, W): B of each after the other."""

        def of_one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], lane: Tensor, batch: Tensor
        ) -> tuple[dict[str, Tensor], Tensor]:
            def call(inputs: Mapping[str, Tensor]) -> Any:
                with _Lane(lane, self.generators):
                    return functional_call(self._base, (parameters, buffers), (inputs,), options)

            terms = _terms(self.members[0], call, batch)
            return dict(terms), terms.brightness

        scalars, brightness = vmap(of_one, randomness="error")(
            self._parameters, self._buffers, self._lanes, images.unflatten(0, (*self.shape, -1))
        )
        terms = Terms(scalars)
        terms.brightness = brightness
        return terms

    def rows(self, tensor: Tensor) -> Sequence[Tensor]:
        """Its rows."""
        return list(tensor)

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """Stacked rows."""
        return torch.stack(list(rows))

    def check(self, images: Tensor, precision: Precision, **options: Any) -> None:
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
            with networks_in(precision, self._base):
                terms = self.terms(images.repeat(len(self.members), 1, 1, 1), **options)
            for loss, parameters in objectives.items():
                torch.autograd.grad(
                    terms[loss].sum(), parameters, retain_graph=True, allow_unused=True
                )
            drawn = self._generator_states()
            self._restore(*before)
            alone = []
            for model, randomness in zip(self.members, self.randomness, strict=True):
                own = Single(model, randomness)
                with own.in_force(), networks_in(precision, model), torch.no_grad():
                    alone.append(own.terms(images, **options))
            for seed, (one, other) in enumerate(
                zip(drawn, self._generator_states(), strict=True), start=1
            ):
                if any(not torch.equal(one[name], other[name]) for name in one):
                    raise StackingError(f"model {seed} draws other numbers than alone")
        finally:
            self._restore(*before)
        for loss in objectives:
            for seed, own_terms in enumerate(alone):
                found, expected = terms[loss][seed].item(), own_terms[loss].item()
                if not (
                    math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
                    or (found != found and expected != expected)
                ):
                    raise StackingError(
                        f"{loss} of model {seed + 1} is {found:.7g} among the others and "
                        f"{expected:.7g} alone"
                    )

    def _generator_states(self) -> list[dict[str, Tensor]]:
        return [one.state() for one in self.randomness]

    def _restore(
        self, generators: Sequence[Mapping[str, Tensor]], buffers: Mapping[str, Tensor]
    ) -> None:
        for one, state in zip(self.randomness, generators, strict=True):
            one.restore(state)
        for name, value in buffers.items():
            self._buffers[name].copy_(value)

    def _part(self) -> None:
        """Give each model tensors of its own again."""
        for model in self.members:
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


def _objectives(model: BenchmarkModel) -> dict[str, list[Tensor]]:
    """Parameters by the name of the loss that they follow; one loss unless the model says so."""
    objectives: Callable[[], dict[str, list[Tensor]]] | None = getattr(model, "objectives", None)
    return {"loss": list(model.parameters())} if objectives is None else objectives()


def _terms(
    model: BenchmarkModel, call: Callable[[Mapping[str, Tensor]], Any], images: Tensor
) -> Terms:
    """The scalars of a model's output."""
    with _watching(model.decoder) as sums:
        output = call({"data": images})
    terms = Terms(
        (name, value)
        for name, value in output.items()
        if isinstance(value, Tensor) and value.ndim == 0
    )
    terms.brightness = sum(sums[1:], start=sums[0]) if sums else images.new_zeros(())
    return terms


@contextmanager
def _watching(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """Note decoded images that are not finite, and keep them from the loss.

    torch's cross-entropy refuses NaN: with an exception on a CPU, and on a GPU by aborting
    everything that the process has there.
    """
    sums: list[Tensor] = []

    def watch(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        images = output["reconstruction"]
        sums.append(images.detach().float().sum())
        output["reconstruction"] = images.nan_to_num(nan=0.5)
        return output

    hook = decoder.register_forward_hook(watch)
    try:
        yield sums
    finally:
        hook.remove()


class _Lane(TorchFunctionMode):
    """Inside ``vmap``, what one model of several needs of torch's functions.

    A model draws from its own generator what it would draw alone, by the functions of `_DRAWS` and
    `_DRAWS_LIKE`; ``vmap`` refuses all others. Batch norm is torch's own with a channel for each
    channel of each model: by ``vmap`` it would have no kernel on a GPU, and none in bf16.
    """

    def __init__(self, lane: Tensor, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._lane = lane
        self._generators = generators

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.batch_norm:
            return _Normalise.apply(*_BATCH_NORM.bind(*args, **options).args)
        if func in _DRAWS_LIKE:
            like, *rest = args
            func, args = _DRAWS_LIKE[func], (*rest, like.shape)
            options = {"dtype": like.dtype, "device": like.device} | options
        if func not in _DRAWS:
            return func(*args, **options)
        if "generator" in options:
            raise StackingError("it draws from a generator of its own")
        return _Draw.apply(self._lane, partial(func, *args, **options), self._generators)


_DRAWS = {torch.randn, torch.rand, torch.randint, torch.randperm}
_DRAWS_LIKE: dict[Any, Callable[..., Tensor]] = {
    torch.randn_like: torch.randn,
    torch.rand_like: torch.rand,
    torch.randint_like: torch.randint,
}
_BATCH_NORM = inspect.signature(F.batch_norm)


class _Draw(torch.autograd.Function):
    """A random tensor for each model, from the model's own generator."""

    @staticmethod
    def forward(
        lane: Tensor, draw: Callable[..., Tensor], generators: Sequence[torch.Generator]
    ) -> Tensor:
        return draw(generator=generators[int(lane)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        _info: Any,
        _in_dims: tuple[int | None, ...],
        _lane: Tensor,
        draw: Callable[..., Tensor],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, int]:
        return torch.stack([draw(generator=generator) for generator in generators]), 0


class _Normalise(torch.autograd.Function):
    """``F.batch_norm`` of several models at once, as one of all their channels."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.batch_norm(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing: under ``vmap`` the slope is that of the one batch norm."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], maps: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        # Running statistics are written in place, so that they have to be views here.
        arguments = tuple(a.view(-1) if isinstance(a, Tensor) else a for a in arguments)
        [axis, *_] = in_dims
        assert axis is not None  # noqa: S101
        result = F.batch_norm(maps.movedim(axis, 1).flatten(1, 2), *arguments)
        return result.unflatten(1, (info.batch_size, -1)), 1
