"""Seeds derived from identity: what a run is decides every random number in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of ``content``: key order and spacing do not matter.

    Raises:
        ValueError: if a value is not finite.
        TypeError: if a value is not JSON.
    """
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()


def derive_seed(identity: str, purpose: str) -> int:
    """A seed in [0, 2³²) for one purpose (``"training"``, ``"k-means"``) of one identity.

    Seeds of different purposes are independent, so that one stage drawing more or fewer numbers
    does not change another. 32 bits is what NumPy's and scikit-learn's seeds hold.
    """
    return int.from_bytes(hashlib.sha256(f"{identity}\n{purpose}".encode()).digest()[:4])
