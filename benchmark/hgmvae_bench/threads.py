"""Work that is spread over threads, torch keeping to one within each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def spread(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of ``function`` for every item, in order, on as many threads as torch may use.

    Threads that never wait for each other lose little where cores are shared with other work, and
    what they compute does not depend on their number.
    """
    n_threads = torch.get_num_threads()
    # Threads start with the number that is set when they first use torch.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(n_threads)
