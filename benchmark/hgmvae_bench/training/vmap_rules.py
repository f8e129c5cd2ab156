"""What one model of several needs of torch's functions inside ``torch.func.vmap``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class VmapError(RuntimeError):
    """Something that a model does and that models side by side cannot do; the message says what."""


class VmapMode(TorchFunctionMode):
    """A block in which a model, mapped over with others, has its own draws and its batch norm.

    A model draws from its own generator what it would draw alone, by the functions of `_DRAWS` and
    `_DRAWS_LIKE`; ``vmap`` refuses all others. Batch norm is torch's own with a channel for each
    channel of each model: by ``vmap`` it would have no kernel on a GPU, and none in bf16.

    Args:
        number: which of the models it is, as ``vmap`` has it: one for each.
        generators: of all models.

    Raises:
        VmapError: if the model draws from a generator of its own.
    """

    def __init__(self, number: Tensor, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._number = number
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
            raise VmapError("it draws from a generator of its own")
        return _Draw.apply(self._number, partial(func, *args, **options), self._generators)


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
        number: Tensor, draw: Callable[..., Tensor], generators: Sequence[torch.Generator]
    ) -> Tensor:
        return draw(generator=generators[int(number)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        _info: Any,
        _in_dims: tuple[int | None, ...],
        _number: Tensor,
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
