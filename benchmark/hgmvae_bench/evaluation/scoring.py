"""Scoring: metrics of a run's outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from hgmvae_bench.plugins.protocols import MetricMissingError, Outputs
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import MetricValue
from hgmvae_bench.training.precision import tf32


@tf32(enabled=False)
def score(outputs: Outputs, metrics: Iterable[str]) -> dict[str, MetricValue]:
    """Compute metrics by their registered names.

    A metric that cannot be computed, or whose code fails or gives what no record can hold, is
    recorded as missing with the reason: it must not cost the run what has been trained.

    Raises:
        torch.OutOfMemoryError: if the GPU's memory does not suffice.
    """
    values = {}
    for name in metrics:
        metric = METRICS[name]
        start = time.perf_counter()
        try:
            value = metric.compute(outputs)
            fingerprint = dict(metric.fingerprint(outputs))
            values[name] = MetricValue.of(value, fingerprint, time.perf_counter() - start)
        except torch.OutOfMemoryError:
            raise  # Not the metric's fault: fewer runs side by side leave more room.
        except MetricMissingError as reason:
            values[name] = MetricValue(missing=str(reason))
        except Exception as error:
            message = " ".join(str(error).split())  # One line, for the notes of tables.
            values[name] = MetricValue(missing=f"error: {type(error).__name__}: {message}")
    return values
