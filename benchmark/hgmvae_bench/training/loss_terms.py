"""What a training step takes from a model: its scalars, and which parameters follow which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from hgmvae_bench.plugins.protocols import BenchmarkModel, HasObjectives


class LossTerms(NamedTuple):
    """The outcome of a batch, each a scalar; of several models one for each, (S,).

    Attributes:
        scalars: of the model's output, by name.
        image_sum: a sum over all decoded images: finite if, and only if, they all are.
    """

    scalars: dict[str, Tensor]
    image_sum: Tensor


def model_objectives(model: BenchmarkModel) -> dict[str, list[Tensor]]:
    """Parameters by the name of the loss that they follow; one loss unless the model says so."""
    if isinstance(model, HasObjectives):
        return model.objectives()
    return {"loss": list(model.parameters())}


def compute_loss_terms(
    model: BenchmarkModel, call: Callable[[Mapping[str, Tensor]], Any], images: Tensor
) -> LossTerms:
    """What comes of calling a model.

    Args:
        model: whose decoder is watched.
        call: the model, or what stands for it; takes ``{"data": images}``.
        images: (B, C, H, W) in [0, 1].
    """
    with _watching(model.decoder) as sums:
        output = call({"data": images})
    return LossTerms(
        {
            name: value
            for name, value in output.items()
            if isinstance(value, Tensor) and value.ndim == 0
        },
        sum(sums[1:], start=sums[0]) if sums else images.new_zeros(()),
    )


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
