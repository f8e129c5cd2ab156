"""Choices, defaults and bounds of options that users pass, on the command line and from Python."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Literal

from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import quote

Device = Literal["auto", "cpu", "cuda"]
"""Device of the runs; ``auto`` selects a GPU if there is one."""

Precision = Literal["float32", "tf32", "bf16"]
"""Number format of the networks during training."""

DEFAULT_RESULTS = "results/local"
"""Default results folder."""

MAX_LATENT_DIM = 65_536
MAX_WIDTH = 1024
MAX_BATCH_SIZE = 65_536

MAX_SECONDS = 3650 * 86400.0
"""Largest duration that an option accepts."""


class BoundsError(UserError, ValueError):
    """A number out of its bounds; the message names the option and what was expected."""


def check_count(name: str, value: object, minimum: int = 1) -> None:
    """Check that an option is an integer of at least ``minimum``.

    Raises:
        BoundsError: if it is not.
    """
    # True is an int in Python.
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise BoundsError(f"{name}: expected an integer of at least {minimum}, got {quote(value)}")


def check_seconds(name: str, value: object) -> None:
    """Check that an option is a positive number of seconds, at most `MAX_SECONDS`.

    Raises:
        BoundsError: if it is not.
    """
    if not _is_finite(value) or not 0 < value <= MAX_SECONDS:  # type: ignore[operator]
        raise BoundsError(
            f"{name}: expected seconds above 0 and at most {MAX_SECONDS:.0f}, got {quote(value)}"
        )


def check_not_negative(name: str, value: object) -> None:
    """Check that an option is a finite number of at least 0.

    Raises:
        BoundsError: if it is not.
    """
    if not _is_finite(value) or value < 0:  # type: ignore[operator]
        raise BoundsError(
            f"{name}: expected a number of at least 0, such as 0.25, got {quote(value)}"
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
