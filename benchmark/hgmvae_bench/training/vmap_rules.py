"""Rules for random draws and batch norm of stacked models inside ``torch.func.vmap``."""

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
    """Operation of a model that has no rule for stacked models."""


class VmapMode(TorchFunctionMode):
    """Mode in which each vmapped model draws from its own generator and has its own batch norm.

    Draws by the functions in `_DRAWS` and `_DRAWS_LIKE` are those that the model would make alone;
    ``vmap`` rejects all others. Batch norm is computed by one call over the channels of all models:
    vmap's decomposition has no GPU kernel for channels-last maps, and none for bf16.

    Args:
        model_index: index of the model, mapped over by ``vmap``.
        generators: generators of all models.

    Raises:
        VmapError: if the model passes a generator to a random function.
    """

    def __init__(self, model_index: Tensor, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._model_index = model_index
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
            return _BatchNorm.apply(*_BATCH_NORM.bind(*args, **options).args)
        if func in _DRAWS_LIKE:
            like, *rest = args
            func, args = _DRAWS_LIKE[func], (*rest, like.shape)
            options = {"dtype": like.dtype, "device": like.device} | options
        if func not in _DRAWS:
            return func(*args, **options)
        if "generator" in options:
            raise VmapError("the model draws from its own generator")
        return _Draw.apply(self._model_index, partial(func, *args, **options), self._generators)


_DRAWS = {torch.randn, torch.rand, torch.randint, torch.randperm}
_DRAWS_LIKE: dict[Any, Callable[..., Tensor]] = {
    torch.randn_like: torch.randn,
    torch.rand_like: torch.rand,
    torch.randint_like: torch.randint,
}
_BATCH_NORM = inspect.signature(F.batch_norm)


class _Draw(torch.autograd.Function):
    """Random tensor of each model, from the model's own generator."""

    @staticmethod
    def forward(
        model_index: Tensor, draw: Callable[..., Tensor], generators: Sequence[torch.Generator]
    ) -> Tensor:
        return draw(generator=generators[int(model_index)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        _info: Any,
        _in_dims: tuple[int | None, ...],
        _model_index: Tensor,
        draw: Callable[..., Tensor],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, int]:
        return torch.stack([draw(generator=generator) for generator in generators]), 0


class _BatchNorm(torch.autograd.Function):
    """``F.batch_norm`` of S models as one call with S · C channels."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.batch_norm(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save nothing: autograd differentiates the call in `vmap`."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], maps: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        # Views, because running statistics are updated in place.
        arguments = tuple(a.view(-1) if isinstance(a, Tensor) else a for a in arguments)
        [axis, *_] = in_dims
        assert axis is not None  # noqa: S101
        result = F.batch_norm(maps.movedim(axis, 1).flatten(1, 2), *arguments)
        return result.unflatten(1, (info.batch_size, -1)), 1
