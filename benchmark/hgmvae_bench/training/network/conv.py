"""Strided 3×3 convolutions as matrix products, exact and faster than torch's layers.

A 3×3 convolution of stride 2 and its transpose are computed by two operations on channels-last
maps. The first gathers the 3×3 neighbourhoods of every second pixel and multiplies them by the
weights. The second computes each of the four output pixels of an input pixel from the inputs that
reach it. Each operation is the adjoint of the other, so that both layers use the same two in their
backward passes.

On a GPU, cuDNN's float32 kernels are slow on maps of a few pixels, and some of them sum in a
different order each time; cuBLAS's products do neither. On a CPU, oneDNN's float32 kernels are
faster on all but the smallest maps if the channels come last in memory, and are used there.
Timings are in ``docs/results/speed.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 3
# Minimum side in pixels of a layer's larger map from which oneDNN's kernels are faster.
_ONEDNN_SIDE = 8
USE_ONEDNN = torch.backends.mkldnn.is_available()
# (row, column) offsets of the inputs that can reach an output pixel, ordered so that each of the
# four output pixels uses a contiguous slice.
_OFFSETS: tuple[tuple[int, int], ...] = ((0, 1), (0, 0), (1, 0), (1, 1))
# For each output pixel (row, column): the offsets that reach it, and the kernel taps they use.
_PHASES: dict[tuple[int, int], tuple[slice, tuple[tuple[int, int], ...]]] = {
    (0, 0): (slice(1, 2), ((1, 1),)),
    (0, 1): (slice(0, 2), ((1, 0), (1, 2))),
    (1, 0): (slice(1, 3), ((2, 1), (0, 1))),
    (1, 1): (slice(0, 4), ((2, 0), (2, 2), (0, 2), (0, 0))),
}


def extract_patches(maps: Tensor) -> Tensor:
    """Extract the 3×3 neighbourhoods of every second pixel, padded with zeros.

    Args:
        maps: (B, H, W, C) with even H and W.

    Returns:
        (B · H/2 · W/2, 9 · C): taps row by row, with the channels innermost.
    """
    n, height, width, channels = maps.shape
    padded = F.pad(maps, (0, 0, 1, 0, 1, 0))
    image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (n, height // 2, width // 2, KERNEL, KERNEL, channels),
        (image, 2 * row, 2 * column, row, column, channel),
    )
    return windows.reshape(-1, KERNEL * KERNEL * channels)


def _transposed_conv(maps: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution: the adjoint of `extract_patches` followed by a product.

    Args:
        maps: (B, H, W, C).
        weight: (C, 3, 3, O).

    Returns:
        (B, 2H, 2W, O).
    """
    n, height, width, channels = maps.shape
    method = _by_output_pixel if len(_OFFSETS) * channels <= weight[0].numel() else _by_tap
    result = maps.new_empty(n, height, 2, width, 2, weight.shape[-1])
    for (row, column), pixels in method(maps, weight):
        result[:, :, row, :, column] = pixels
    return result.view(n, 2 * height, 2 * width, -1)


def _by_output_pixel(maps: Tensor, weight: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Gather the inputs of each output pixel, then multiply once per output pixel."""
    n, height, width, channels = maps.shape
    padded = F.pad(maps, (0, 0, 0, 1, 0, 1))
    shifted = [padded[:, i : i + height, j : j + width] for i, j in _OFFSETS]
    gathered = torch.stack(shifted, dim=3).view(n * height * width, len(_OFFSETS), channels)
    for phase, (offsets, taps) in _PHASES.items():
        kernel = torch.cat([weight[:, i, j] for i, j in taps])
        yield phase, (gathered[:, offsets].flatten(1) @ kernel).view(n, height, width, -1)


def _by_tap(maps: Tensor, weight: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Multiply once for all taps, then sum per output pixel. Faster for few output channels."""
    n, height, width, channels = maps.shape
    products = (maps.reshape(-1, channels) @ weight.flatten(1)).view(n, height, width, -1)
    products = F.pad(products, (0, 0, 0, 1, 0, 1)).unflatten(-1, weight.shape[1:])
    for phase, (offsets, taps) in _PHASES.items():
        reaching = [
            products[:, row : row + height, column : column + width, i, j]
            for (row, column), (i, j) in zip(_OFFSETS[offsets], taps, strict=True)
        ]
        yield phase, torch.stack(reaching).sum(0)


class _Downsampling(torch.autograd.Function):
    """Convolution of stride 2: (B, H, W, C) and (O, 3, 3, C) to (B, H/2, W/2, O).

    The patches are a second output because a generated ``vmap`` rule can save only inputs and
    outputs for the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        n, height, width, _ = maps.shape
        columns = extract_patches(maps)
        return (columns @ weight.flatten(1).T).view(n, height // 2, width // 2, -1), columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        [_, weight], [_, columns] = inputs, output
        ctx.mark_non_differentiable(columns)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(columns, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None]:
        [gradient, _] = gradients
        if gradient is None:  # No gradient is materialised for an unused output.
            return None, None
        columns, weight = ctx.saved_tensors
        for_maps, for_weight = ctx.needs_input_grad
        gradient = gradient.contiguous()
        return (
            _transposed_conv(gradient, weight) if for_maps else None,
            (gradient.flatten(0, 2).T @ columns).view_as(weight) if for_weight else None,
        )


class _Upsampling(torch.autograd.Function):
    """Transposed convolution of stride 2: (B, H, W, C) and (C, 3, 3, O) to (B, 2H, 2W, O)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, weight: Tensor) -> Tensor:
        return _transposed_conv(maps, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None]:
        [gradient] = gradients
        maps, weight = ctx.saved_tensors
        for_maps, for_weight = ctx.needs_input_grad
        columns = extract_patches(gradient.contiguous())
        return (
            (columns @ weight.flatten(1).T).view_as(maps) if for_maps else None,
            (maps.reshape(-1, maps.shape[-1]).T @ columns).view_as(weight) if for_weight else None,
        )


def downsample(maps: Tensor, weight: Tensor) -> Tensor:
    """Convolution of stride 2 with zero padding 1.

    Args:
        maps: (B, H, W, C) with even H and W.
        weight: (O, 3, 3, C).

    Returns:
        (B, H/2, W/2, O).
    """
    if maps.shape[1:3] == (2, 2):  # The other five taps read only padding.
        return (maps.flatten(1) @ weight[:, 1:, 1:].flatten(1).T).view(-1, 1, 1, len(weight))
    result: Tensor
    result, _ = _Downsampling.apply(maps, weight)
    return result


def upsample(maps: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution of stride 2, the adjoint of `downsample`.

    Args:
        maps: (B, H, W, C).
        weight: (C, 3, 3, O).

    Returns:
        (B, 2H, 2W, O).
    """
    if maps.shape[1:3] == (1, 1):  # The other five taps write outside the map.
        return (maps.flatten(1) @ weight[:, 1:, 1:].flatten(1)).view(-1, 2, 2, weight.shape[-1])
    result: Tensor = _Upsampling.apply(maps, weight)
    return result


class Downsampling(nn.Conv2d):
    """3×3 convolution of stride 2 with zero padding 1: (B, C, H, W) to (B, O, H/2, W/2).

    Args:
        c_in: input channels C.
        c_out: output channels O.
        bias: whether to add a bias.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool = True) -> None:
        super().__init__(c_in, c_out, KERNEL, stride=2, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Maps (B, C, H, W), H and W even, to (B, O, H/2, W/2)."""
        if _suits_onednn(input, min(input.shape[2:])):
            return super().forward(_to_channels_last(input))
        return _apply_channels_last(downsample, input, self.weight, self.bias)


class Upsampling(nn.ConvTranspose2d):
    """3×3 transposed convolution of stride 2: (B, C, H, W) to (B, O, 2H, 2W).

    Args:
        c_in: input channels C.
        c_out: output channels O.
        bias: whether to add a bias.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool = True) -> None:
        super().__init__(c_in, c_out, KERNEL, stride=2, padding=1, output_padding=1, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Maps (B, C, H, W) to (B, O, 2H, 2W)."""
        if output_size is not None:
            return super().forward(input, output_size)
        if _suits_onednn(input, 2 * min(input.shape[2:])):
            return super().forward(_to_channels_last(input))
        return _apply_channels_last(upsample, input, self.weight, self.bias)


def _suits_onednn(maps: Tensor, side: int) -> bool:
    """Whether torch's layer is faster, given the side of the layer's larger map in pixels."""
    return (
        USE_ONEDNN
        and side >= _ONEDNN_SIDE
        and maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.is_batchedtensor(maps)  # vmap has no channels-last layout.
    )


def _to_channels_last(maps: Tensor) -> Tensor:
    """Convert maps to channels-last memory, so that the layer's output is channels-last too.

    For a single channel, torch's conversion keeps the strides, and the output would be
    channels-first. The strides are therefore set explicitly.
    """
    _, channels, height, width = maps.shape
    if channels == 1:
        return maps.contiguous().as_strided(maps.shape, (height * width, 1, width, 1))
    return maps.contiguous(memory_format=torch.channels_last)


def _apply_channels_last(
    layer: Callable[[Tensor, Tensor], Tensor], maps: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    device = maps.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        maps, weight = maps.to(dtype), weight.to(dtype)
    result = layer(maps.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1))
    if bias is not None:
        result = result + bias
    return result.permute(0, 3, 1, 2)
