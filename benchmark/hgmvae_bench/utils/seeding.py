"""Random seeds derived from the identity of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``content``, for any order of its keys.

    Raises:
        ValueError: if a value is not finite.
        TypeError: if JSON cannot represent a value.
    """
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()


def derive_seed(identity: str, purpose: str) -> int:
    """Return a seed in [0, 2³²) for one purpose (``"training"``, ``"k-means"``) of one identity.

    Seeds of different purposes are independent: a stage that draws more numbers does not change
    another. NumPy and scikit-learn accept 32 bits.
    """
    return int.from_bytes(hashlib.sha256(f"{identity}\n{purpose}".encode()).digest()[:4])
