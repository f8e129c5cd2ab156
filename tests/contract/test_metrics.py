"""What the suite relies on in every registered metric, ours and third parties' alike."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.controls import PrincipalComponents
from hgmvae_bench.evaluation.metrics import classifier, weights
from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError, MetricPlugin, Need
from hgmvae_bench.plugins.registry import METRICS

every_metric = pytest.mark.parametrize("name", METRICS.names())


@pytest.fixture(scope="module")
def tiny() -> ImageData:
    from hgmvae_bench.plugins.registry import DATASETS

    digits = DATASETS["digits"].load(Path(), image_size=32)
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    return ImageData(
        digits.train_images[:200],
        digits.train_labels[:200],
        digits.test_images[:60],
        digits.test_labels[:60],
    )


@pytest.fixture
def outputs(tiny: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunOutputs:
    """Of PCA on real digits, without network and with a classifier of a moment's training."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "download", lambda url, target: "no network")
    monkeypatch.setattr(classifier, "STEPS", 10)
    codec = PrincipalComponents(tiny.train_images, 4, seed=0)
    return RunOutputs(codec, tiny, "tiny", "contract", torch.device("cpu"), cache=tmp_path)


def value_or_reason(metric: MetricPlugin, outputs: RunOutputs) -> float | str:
    try:
        return metric.compute(outputs)
    except MetricMissingError as reason:
        return str(reason)


@every_metric
def test_metadata(name: str) -> None:
    metric = METRICS[name]
    assert metric.title
    assert metric.reference
    assert metric.direction in {"higher", "lower"}
    assert metric.cost in {"cheap", "expensive"}
    low, high = metric.range
    assert low < high
    assert metric.needs
    assert set(metric.needs) <= set(get_args(Need))


def test_titles_differ() -> None:
    titles = [METRICS[name].title for name in METRICS]
    assert len(set(titles)) == len(titles)


@every_metric
def test_value_or_reason(name: str, outputs: RunOutputs) -> None:
    metric = METRICS[name]
    value = value_or_reason(metric, outputs)
    assert type(value) in {float, str}
    if isinstance(value, str):
        assert value
        return
    assert math.isfinite(value)
    low, high = metric.range
    assert low <= value <= high
    fingerprint = dict(metric.fingerprint(outputs))
    assert json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint
    assert fingerprint["n_images"] == 60
    # The same outputs made anew, and other random numbers drawn before.
    torch.manual_seed(12345)
    again = replace(outputs, codec=replace(outputs.codec))  # type: ignore[type-var]
    assert metric.compute(again) == value
    assert dict(metric.fingerprint(again)) == fingerprint


@every_metric
def test_leaves_random_numbers_alone(name: str, outputs: RunOutputs) -> None:
    before = torch.random.get_rng_state()
    value_or_reason(METRICS[name], outputs)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_metric
def test_needs_are_true(name: str, outputs: RunOutputs) -> None:
    """Labels are missed by the metrics that name them among their needs, and by no other."""
    metric = METRICS[name]
    bare = replace(outputs, data=replace(outputs.data, train_labels=None, test_labels=None))
    assert ("no classes" in str(value_or_reason(metric, bare))) == ("labels" in metric.needs)


def test_plugins_are_imported_without_torch() -> None:
    """Listing the metrics stays quick."""
    program = (
        "import sys; from hgmvae_bench.plugins.registry import METRICS; "
        "[METRICS[n] for n in METRICS]; "
        "heavy = {'numpy', 'torch', 'sklearn', 'scipy', 'torch_fidelity', 'lpips'}; "
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
