"""The newest codes of a training, to which the global mixture is fitted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodeBuffer(nn.Module):
    """Ring buffer of codes and their variances.

    It is written in place because a CUDA graph may replay the training step.

    Args:
        size: maximum number of codes.
        latent_dim: L.
    """

    def __init__(self, size: int, latent_dim: int) -> None:
        super().__init__()
        self.codes: Tensor
        self.variances: Tensor
        self.n_codes: Tensor
        self.register_buffer("codes", torch.zeros(size, latent_dim), persistent=False)
        self.register_buffer("variances", torch.zeros(size, latent_dim), persistent=False)
        self.register_buffer("n_codes", torch.zeros((), dtype=torch.long), persistent=False)

    @torch.no_grad()
    def keep(self, codes: Tensor, variances: Tensor) -> None:
        """Store codes and their variances, both (B, L), replacing the oldest ones."""
        size = len(self.codes)
        codes, variances = codes[-size:], variances[-size:]
        rows = (self.n_codes + torch.arange(len(codes), device=codes.device)) % size
        self.codes.index_put_((rows,), codes)
        self.variances.index_put_((rows,), variances)
        self.n_codes.add_(len(codes))

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the codes and their variances, both (N, L), and empty the buffer."""
        n_codes = min(int(self.n_codes), len(self.codes))
        self.n_codes.zero_()
        return self.codes[:n_codes], self.variances[:n_codes]
