"""Scores of a run: the requested metrics of its outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from hgmvae_bench.plugins.protocols import MetricMissingError, Outputs
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.storage.schema import MetricValue
from hgmvae_bench.training.precision import tf32
from hgmvae_bench.utils.text import shorten_message


@tf32(enabled=False)
def score(outputs: Outputs, metrics: Iterable[str]) -> dict[str, MetricValue]:
    """Compute metrics by their registered names.

    A metric that cannot be loaded, raises an error, exits or returns a value that no record can
    hold is recorded as missing with the reason, so that it cannot fail a trained run.

    Raises:
        torch.OutOfMemoryError: if the GPU runs out of memory.
    """
    values = {}
    for name in metrics:
        start = time.perf_counter()
        try:
            metric = METRICS[name]
            value = metric.compute(outputs)
            fingerprint = dict(metric.fingerprint(outputs))
            values[name] = MetricValue.of(value, fingerprint, time.perf_counter() - start)
        except torch.OutOfMemoryError:
            raise  # The caller can retry with fewer concurrent runs.
        except MetricMissingError as error:
            values[name] = MetricValue(missing=_publishable(str(error)))
        except (Exception, SystemExit) as error:  # A metric may call sys.exit.
            message = " ".join(str(error).split())  # One line, for the notes of tables.
            reason = _publishable(f"error: {type(error).__name__}: {message}")
            values[name] = MetricValue(missing=reason)
    return values


def _publishable(message: str) -> str:
    """Shorten a message and the home folder in it: records keep it, and records are published."""
    return shorten_message(message.replace(f"{Path.home()}/", "~/"))
