"""Loss terms of a model's forward pass, and the parameters that each loss trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from hgmvae_bench.plugins.protocols import BenchmarkModel, HasObjectives


class LossTerms(NamedTuple):
    """Loss terms of a batch: scalars, or (S,) for S stacked models.

    Attributes:
        scalars: every scalar of the model's output, by name.
        image_sum: sum over the decoded images; finite if and only if all of them are.
    """

    scalars: dict[str, Tensor]
    image_sum: Tensor


def model_objectives(model: BenchmarkModel) -> dict[str, list[Tensor]]:
    """Trained parameters by the name of their loss.

    All parameters follow ``loss`` unless the model defines ``objectives``.
    """
    if isinstance(model, HasObjectives):
        return model.objectives()
    return {"loss": list(model.parameters())}


def compute_loss_terms(
    model: BenchmarkModel, call: Callable[[Mapping[str, Tensor]], Any], images: Tensor
) -> LossTerms:
    """Run a forward pass and collect its loss terms.

    Args:
        model: model whose decoder is observed.
        call: forward pass, with ``{"data": images}`` as its argument.
        images: (B, C, H, W) in [0, 1].
    """
    with _replace_nan_images(model.decoder) as sums:
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
def _replace_nan_images(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """Replace NaN in decoded images by 0.5, and yield a list of the original images' sums.

    torch's cross-entropy does not accept NaN. It raises on a CPU; on a GPU it aborts all work of
    the process.
    """
    sums: list[Tensor] = []

    def replace(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        images = output["reconstruction"]
        sums.append(images.detach().float().sum())
        output["reconstruction"] = images.nan_to_num(nan=0.5)
        return output

    hook = decoder.register_forward_hook(replace)
    try:
        yield sums
    finally:
        hook.remove()
