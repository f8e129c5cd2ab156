"""Expectation-maximisation of a Gaussian mixture with full covariances.

The iteration is that of scikit-learn's ``GaussianMixture``, which cannot use a GPU. Log-densities
are linear in the codes and their products x_i x_j, so that each step is one matrix product for all
Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hgmvae.aggregate import LOG_2PI

CHUNK_ELEMENTS, CHUNK_ELEMENTS_ON_GPU = 2**20, 2**24
"""Maximum number of products x_i x_j held at a time: 8 MiB on a CPU, where the allocator reuses the
memory for the next chunk, and 128 MiB on a GPU, which keeps it busy."""

MIN_GAIN = 1e-3
"""Gain of the mean log-likelihood, in nats, below which the iteration stops (as scikit-learn's)."""

MIN_COUNT = 10 * torch.finfo(torch.float64).eps
"""Added to the number of codes of each Gaussian, which may be 0."""


class Gaussians(NamedTuple):
    """A mixture of M Gaussians.

    Attributes:
        weights: (M,), on the simplex.
        means: (M, L).
        covariances: (M, L, L), positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


class Statistics(NamedTuple):
    """Statistics of an expectation step.

    Attributes:
        log_likelihood: mean log-likelihood of the codes, a scalar.
        overlap: mean products of the responsibilities of all pairs of Gaussians (M, M).
    """

    log_likelihood: Tensor
    overlap: Tensor


def fit_gaussians(
    codes: Tensor, labels: Tensor, n_components: int, *, floor: float, max_iterations: int = 50
) -> tuple[Gaussians, Statistics]:
    """Fit a mixture to codes, starting from an assignment of the codes to Gaussians.

    The iteration ends when a step adds less than 0.001 nats to the mean log-likelihood.

    Args:
        codes: (N, L), float64. The computation is on their device.
        labels: index in 0..M-1 of the Gaussian of each code (N,).
        n_components: M.
        floor: added to the variances.
        max_iterations: maximum number of steps.

    Returns:
        The mixture and the statistics of the last expectation step.
    """
    centre = codes.mean(0)
    pairs = _Pairs(codes - centre)
    moments = pairs.moments(F.one_hot(labels[rows], n_components).to(codes) for rows in pairs.rows)
    mixture = _maximisation(moments, floor)
    reached = -math.inf
    for _ in range(max_iterations):
        moments, found = _expectation(pairs, mixture)
        log_likelihood = float(found.log_likelihood)
        if log_likelihood - reached < MIN_GAIN:
            break
        reached = log_likelihood
        mixture = _maximisation(moments, floor)
    else:
        _, found = _expectation(pairs, mixture)
    return mixture._replace(means=mixture.means + centre), found


class _Moments(NamedTuple):
    """Sums over the codes, weighted by responsibilities: of 1, x, and x_i x_j for i ≤ j.

    Attributes:
        zeroth: (M,).
        first: (M, L).
        second: (M, L (L + 1) / 2).
    """

    zeroth: Tensor
    first: Tensor
    second: Tensor


class _Pairs:
    """Codes (N, L) with the products x_i x_j of their dimensions, in chunks of rows."""

    def __init__(self, codes: Tensor) -> None:
        n_dims = codes.shape[1]
        self.i, self.j = torch.triu_indices(n_dims, n_dims, device=codes.device)
        self.codes = codes
        # Selecting whole rows is many times faster than selecting columns.
        self._transposed = codes.T.contiguous()
        elements = CHUNK_ELEMENTS if codes.device.type == "cpu" else CHUNK_ELEMENTS_ON_GPU
        size = max(1, elements // len(self.i))
        self.rows = [slice(start, start + size) for start in range(0, len(codes), size)]
        # A single chunk is computed once and kept; several would need too much memory.
        self._only = self._products(self.rows[0]) if len(self.rows) == 1 else None

    def _products(self, rows: slice) -> Tensor:
        codes = self._transposed[:, rows]
        return codes.index_select(0, self.i).mul_(codes.index_select(0, self.j))

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield codes (n, L) and products (L (L + 1) / 2, n) of each chunk."""
        for rows in self.rows:
            products = self._products(rows) if self._only is None else self._only
            yield self.codes[rows], products

    def moments(self, responsibilities: Iterator[Tensor]) -> _Moments:
        """Sum the moments over all chunks, given the responsibilities (n, M) of each chunk."""
        totals: list[Tensor] = []
        for (codes, products), share in zip(self.chunks(), responsibilities, strict=True):
            parts = [share.sum(0), share.T @ codes, share.T @ products.T]
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
        return _Moments(*totals)


def _maximisation(moments: _Moments, floor: float) -> Gaussians:
    """Compute the mixture of maximum likelihood given the moments of centred codes."""
    count = moments.zeroth + MIN_COUNT
    means = moments.first / count.unsqueeze(-1)
    n_dims = means.shape[-1]
    i, j = torch.triu_indices(n_dims, n_dims, device=means.device)
    upper = moments.second / count.unsqueeze(-1) - means[..., i] * means[..., j]
    covariances = means.new_zeros(*means.shape, n_dims)
    covariances[..., i, j] = upper
    covariances[..., j, i] = upper
    covariances.diagonal(dim1=-2, dim2=-1).add_(floor)
    return Gaussians(count / count.sum(), means, covariances)


def _expectation(pairs: _Pairs, mixture: Gaussians) -> tuple[_Moments, Statistics]:
    """Compute the moments under the responsibilities of the mixture, and its statistics."""
    n_components, n_dims = mixture.means.shape
    root = torch.linalg.cholesky(mixture.covariances)
    identity = torch.eye(n_dims, dtype=root.dtype, device=root.device).expand_as(root)
    inverse_root = torch.linalg.solve_triangular(root, identity, upper=False)
    precision = inverse_root.mT @ inverse_root
    linear = (precision @ mixture.means.unsqueeze(-1)).squeeze(-1)
    constant = mixture.weights.log() - 0.5 * (
        n_dims * LOG_2PI
        + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        + (linear * mixture.means).sum(-1)
    )
    # −½ xᵀ P x as a sum over i ≤ j, in which the products off the diagonal count twice.
    quadratic = precision[..., pairs.i, pairs.j] * torch.where(pairs.i == pairs.j, -0.5, -1.0)
    log_likelihood = constant.new_zeros(())
    overlap = constant.new_zeros(n_components, n_components)

    def responsibilities() -> Iterator[Tensor]:
        for codes, products in pairs.chunks():
            joint = codes @ linear.T + (quadratic @ products).T + constant
            evidence = joint.logsumexp(-1, keepdim=True)
            share = (joint - evidence).exp()
            log_likelihood.add_(evidence.sum())
            overlap.addmm_(share.T, share)
            yield share

    moments = pairs.moments(responsibilities())
    n_codes = len(pairs.codes)
    return moments, Statistics(log_likelihood / n_codes, overlap / n_codes)
