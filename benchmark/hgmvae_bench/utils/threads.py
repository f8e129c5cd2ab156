"""How many threads a process computes with, and work that is spread over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(number: int) -> None:
    """Have torch, scikit-learn and BLAS compute with so many threads in this process."""
    # They bring pools of their own, and what is loaded later would begin with all cores.
    import sklearn.cluster
    import sklearn.svm  # noqa: F401

    torch.set_num_threads(number)
    threadpool_limits(number)


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
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
