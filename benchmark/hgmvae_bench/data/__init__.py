"""Image datasets, held in memory as uint8 tensors.

Each dataset family has a module: `digits`, `mnist`, `cifar10`, `celeba`, `chairs`, `sprites`,
`dsprites`, `shapes3d`, `folder` and `validation`. `images` decodes image files, `cache` stores the
decoded arrays, `download` fetches and unpacks archives, `source` describes the state of files, and
`catalogue` finds datasets by their registered name.
"""

from __future__ import annotations

from hgmvae_bench.plugins.image_data import ImageData
from hgmvae_bench.utils.errors import UserError

__all__ = ["DataError", "ImageData", "IncompleteDataWarning"]


class DataError(UserError, RuntimeError):
    """Missing or damaged data; the message names the place and says what to do."""


class IncompleteDataWarning(UserWarning):
    """A dataset with fewer images than the official one; results on it are not comparable."""
