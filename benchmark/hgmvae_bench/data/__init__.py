"""Image datasets, each held whole as uint8 tensors.

How the parts fit: a module per dataset family (`digits`, `mnist`, `cifar10`, `celeba`, `chairs`,
`folder`) says where the files lie and what they mean. `images` turns image files into arrays,
`cache` keeps the arrays for the next start, `download` brings archives and unpacks them, `source`
holds what can be said about data on disk, and `catalogue` does all of it by registered name.
"""

from __future__ import annotations

from hgmvae_bench.plugins.image_data import ImageData
from hgmvae_bench.utils.errors import UserError

__all__ = ["DataError", "ImageData", "IncompleteDataWarning"]


class DataError(UserError, RuntimeError):
    """Data that is absent or damaged; the message names the place and says what to do."""


class IncompleteDataWarning(UserWarning):
    """A dataset that loads but is not the whole official one: no result on it is comparable."""
