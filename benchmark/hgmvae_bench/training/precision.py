"""Arithmetic of the training: which number formats a machine has, and how they are put to use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import nn

from hgmvae_bench.utils.errors import UserError

Precision = Literal["float32", "tf32", "bf16"]


class PrecisionError(UserError, ValueError):
    """A number format that a device does not have; the message says which it has."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a format that the device lacks, or would only emulate.

    Raises:
        PrecisionError: if it does.
    """
    lacking = {
        "tf32": (_lacks_tf32, "TF32 is a format of NVIDIA GPUs from Ampere on"),
        "bf16": (_lacks_bf16, "it would be emulated, many times slower than float32"),
    }
    if precision in lacking:
        test, reason = lacking[precision]
        if test(device):
            raise PrecisionError(
                f"precision {precision} on this {device.type}: {reason}; use float32"
            )


def _lacks_tf32(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)


def _lacks_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def tf32(*, enabled: bool) -> Iterator[None]:
    """Whether a GPU's matrix products and convolutions may round their inputs to TF32.

    torch allows it for convolutions unless told otherwise; here float32 means float32.
    """
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = enabled
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


@contextmanager
def autocast_networks(precision: Precision, model: Any) -> Iterator[None]:
    """Let a model's encoder and decoder compute in a format; what they return is float32.

    The loss terms stay in float32 for every format: cross-entropies and log-densities of bf16
    numbers would cost more digits than the networks gain in speed.
    """
    with ExitStack() as undo:
        if precision == "bf16":
            for network in (getattr(model, "encoder", None), getattr(model, "decoder", None)):
                if network is not None:
                    undo.callback(_compute_in_bf16(network))
        yield


def _compute_in_bf16(network: nn.Module) -> Callable[[], None]:
    """Replace the network's ``forward``; returns what brings it back."""
    plain = network.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        device = next(network.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            output = plain(*arguments, **options)
        for name, value in output.items():
            output[name] = value.float()
        return output

    network.forward = forward

    def bring_back() -> None:
        del network.forward  # the class's own is beneath

    return bring_back
