"""Value ranges and padding of image tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """Convert uint8 images (B, C, H, W) to float32 in [0, 1]."""
    return images.float().div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """Convert images (B, C, H, W) in [0, 1] to uint8, rounding to the nearest level."""
    return images.clamp(0, 1).mul(255).round_().byte()


def pad_to(images: Tensor, size: int) -> Tensor:
    """Zero-pad images (N, C, H, W) evenly to (N, C, ``size``, ``size``).

    Raises:
        ValueError: if the images are larger, or an odd number of pixels is missing.
    """
    from torch.nn.functional import pad

    margins = []
    for side in (images.shape[3], images.shape[2]):
        margin, odd = divmod(size - side, 2)
        if margin < 0 or odd:
            raise ValueError(f"cannot zero-pad {side} px evenly to image_size {size}")
        margins += [margin, margin]
    return pad(images, margins)
