"""Number of threads of a process, and a parallel map over them."""

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
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(number: int) -> None:
    """Set the number of threads of torch, scikit-learn and BLAS in this process."""
    # Import them first: libraries with their own pools start with all cores when they are loaded.
    import sklearn.cluster
    import sklearn.svm  # noqa: F401

    torch.set_num_threads(number)
    threadpool_limits(number)


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``function(item)`` for every item, in order, computed on torch's number of threads.

    Each call uses one torch thread, so that results do not depend on the number of threads. Calls
    do not wait for each other, which costs little on cores that are shared with other processes.
    """
    n_threads = torch.get_num_threads()
    # A new thread takes torch's number of threads at its first use of torch.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(n_threads)
