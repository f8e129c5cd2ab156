"""Seeded splits for datasets that have no official one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLIT_SEED = 0


def shuffled(names: Iterable[str]) -> list[str]:
    """Names in a random order that is the same everywhere and always.

    They are sorted by a hash of the seed and the name, which no version of NumPy can change; and
    a name that is added or removed leaves the order of the others as it was, so that a split
    taken from the front moves by one name at most.
    """
    return sorted(names, key=lambda n: hashlib.sha256(f"{SPLIT_SEED}\n{n}".encode()).digest())


def share(count: int, fraction: float) -> int:
    """``fraction`` of ``count``, rounded, and at least 1."""
    return max(1, round(count * fraction))
