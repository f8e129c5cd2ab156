"""HGMVAE (hierarchical disentanglement in Gaussian mixture VAE) as a pythae model.

The plug-ins import neither torch nor pythae. The classes of the model, which do, are imported on
first access.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hgmvae.plugin import (
    HGMVAE_G,
    HGMVAE_G_NOFISHER,
    HGMVAE_U,
    HGMVAE_U_NOFISHER,
    HGMVAE_U_SINGLE,
    HGMVAE_U_SINGLE_NOFISHER,
)

if TYPE_CHECKING:
    from hgmvae.config import HGMVAEConfig
    from hgmvae.model import HGMVAE
    from hgmvae.sampler import HGMVAESampler

__all__ = [
    "HGMVAE",
    "HGMVAE_G",
    "HGMVAE_G_NOFISHER",
    "HGMVAE_U",
    "HGMVAE_U_NOFISHER",
    "HGMVAE_U_SINGLE",
    "HGMVAE_U_SINGLE_NOFISHER",
    "HGMVAEConfig",
    "HGMVAESampler",
]

_MODULES = {
    "HGMVAE": "hgmvae.model",
    "HGMVAEConfig": "hgmvae.config",
    "HGMVAESampler": "hgmvae.sampler",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'hgmvae' has no attribute '{name}'")
    value: object = getattr(import_module(_MODULES[name]), name)
    return value
