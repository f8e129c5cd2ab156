"""Number formats of training: which a device supports, and how they are enabled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hgmvae_bench.utils.bounds import Precision
from hgmvae_bench.utils.errors import UserError


class PrecisionError(UserError, ValueError):
    """Precision that a device does not support."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Check that a device supports a precision in hardware.

    Raises:
        PrecisionError: if the device lacks the format or would emulate it.
    """
    reason = None
    if precision == "tf32" and not supports_tf32(device):
        reason = "TF32 is a format of NVIDIA GPUs from Ampere on"
    elif precision == "bf16" and not supports_bf16(device):
        reason = "it would be emulated, many times slower than float32"
    if reason is not None:
        raise PrecisionError(
            f"precision {precision} is not supported on this {device.type}: {reason}; use float32"
        )


def supports_tf32(device: torch.device) -> bool:
    """Whether a device computes in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def supports_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 without emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def tf32(*, enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in a GPU's matrix products and convolutions within the block.

    By default torch allows it in convolutions, which would make float32 results less precise.
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
    """Run a model's encoder and decoder in bf16 within the block, if that is the precision.

    Their outputs are converted to float32, and the loss terms are computed in float32: in bf16,
    cross-entropies and log-densities would lose too many digits.
    """
    with ExitStack() as stack:
        if precision == "bf16":
            for network in (getattr(model, "encoder", None), getattr(model, "decoder", None)):
                if network is not None:
                    stack.callback(_autocast_to_bf16(network))
        yield


def _autocast_to_bf16(network: nn.Module) -> Callable[[], None]:
    """Replace the network's ``forward``. Returns a function that restores it."""
    plain = network.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        device = next(network.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            output = plain(*arguments, **options)
        for name, value in output.items():
            output[name] = value.float()
        return output

    network.forward = forward

    def restore() -> None:
        del network.forward  # Uncovers the method of the class.

    return restore
