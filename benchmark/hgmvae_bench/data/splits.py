"""Seeded splits for datasets without an official one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLIT_SEED = 0


def shuffled(names: Iterable[str]) -> list[str]:
    """Sort names by a hash of the seed and the name: a random but reproducible order.

    The order does not depend on a random number generator. Adding or removing a name keeps the
    order of the others, so that a split taken from the front changes by at most one name.
    """
    return sorted(names, key=lambda n: hashlib.sha256(f"{SPLIT_SEED}\n{n}".encode()).digest())


def share(count: int, fraction: float) -> int:
    """Return ``fraction`` of ``count``, rounded, and at least 1."""
    return max(1, round(count * fraction))


def shuffled_indices(count: int) -> list[int]:
    """Sort the indices from 0 to ``count`` − 1 by a hash of the seed and the index."""
    return [int(name) for name in shuffled(str(index) for index in range(count))]
