"""Restoring the state of a process that the code of a model, dataset or metric may change."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch

from hgmvae_bench.utils.threads import limit_threads


@contextmanager
def restored_process_state(threads: int | None = None) -> Iterator[None]:
    """Restore after the block every state that would affect the next run of this process.

    The state comprises the working directory, the environment, the umask, the warning filters, the
    global random generators of Python, NumPy and torch, and torch's default dtype and device,
    gradient mode, anomaly mode, precision and determinism settings.

    Args:
        threads: number of threads to restore; None to leave the threads alone.
    """
    directory, environment, umask = os.getcwd(), dict(os.environ), os.umask(0)  # noqa: PTH109
    os.umask(umask)
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state, settings = torch.get_rng_state(), _TorchSettings()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        with suppress(OSError):  # It may have been removed.
            os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        os.umask(umask)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        settings.restore()
        if threads is not None:
            limit_threads(threads)


class _TorchSettings:
    """Torch's global settings at the time of construction."""

    def __init__(self) -> None:
        self._dtype = torch.get_default_dtype()
        self._device = torch.get_default_device()
        self._grad = torch.is_grad_enabled()
        self._anomaly = torch.is_anomaly_enabled()
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        self._precision = torch.get_float32_matmul_precision()
        cudnn = torch.backends.cudnn
        self._cudnn = cudnn.enabled, cudnn.benchmark, cudnn.deterministic

    def restore(self) -> None:
        """Restore the settings, changing nothing that is unchanged."""
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        if torch.get_default_device() != self._device:
            torch.set_default_device(self._device)
        torch.set_grad_enabled(self._grad)
        torch.autograd.set_detect_anomaly(self._anomaly)
        torch.use_deterministic_algorithms(self._deterministic, warn_only=self._warn_only)
        if torch.get_float32_matmul_precision() != self._precision:
            torch.set_float32_matmul_precision(self._precision)
        cudnn = torch.backends.cudnn
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = self._cudnn
