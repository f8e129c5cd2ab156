"""Contract of every registered metric, of the suite and of third parties alike."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation import controls
from hgmvae_bench.evaluation.controls import PrincipalComponents
from hgmvae_bench.evaluation.metrics import classifier, weights
from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.factors import Factors
from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, MetricPlugin, Need
from hgmvae_bench.plugins.registry import DATASETS, METRICS

every_metric = pytest.mark.parametrize("name", METRICS.names())


@pytest.fixture(scope="module")
def tiny_data() -> ImageData:
    digits = DATASETS["digits"].load(Path(), image_size=32)
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    return ImageData(
        digits.train_images[:200],
        digits.train_labels[:200],
        digits.test_images[:60],
        digits.test_labels[:60],
        factors=Factors(
            ("parity", "half"),
            (2, 2),
            *(
                torch.stack([labels % 2, labels // 5], dim=1)
                for labels in (digits.train_labels[:200], digits.test_labels[:60])
            ),
        ),
    )


@pytest.fixture(scope="module")
def pca_outputs(
    tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunOutputs]:
    """Outputs of PCA on digits, without a network and with a barely trained classifier."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(cache))
        patch.setattr(weights, "download", lambda url, target: "no network")
        patch.setattr(classifier, "STEPS", 10)
        patch.setattr(controls, "MAX_EXACT_PIXELS", 100)  # The approximate solver is faster.
        codec = PrincipalComponents(tiny_data.train_images, 4, seed=0)
        yield RunOutputs(codec, tiny_data, "digits", "contract", torch.device("cpu"), cache=cache)


@pytest.fixture
def outputs(pca_outputs: RunOutputs) -> RunOutputs:
    """The same outputs without what other tests have computed."""
    return replace(pca_outputs)


def value_or_reason(metric: MetricPlugin, outputs: RunOutputs) -> float | str:
    try:
        return metric.compute(outputs)
    except MetricMissingError as reason:
        return str(reason)


@every_metric
def test_metadata_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.title
    assert metric.reference
    assert metric.direction in get_args(Direction)
    assert metric.cost in {"cheap", "expensive"}
    low, high = metric.range
    assert low < high
    assert metric.needs
    assert set(metric.needs) <= set(get_args(Need))


def test_titles_are_unique() -> None:
    titles = [METRICS[name].title for name in METRICS]
    assert len(set(titles)) == len(titles)


@every_metric
def test_value_is_reproducible_and_in_range_or_a_reason_is_given(
    name: str, outputs: RunOutputs
) -> None:
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
    # Outputs of a new codec, after the global generator has drawn other numbers.
    torch.manual_seed(12345)
    repeated = replace(outputs, codec=replace(outputs.codec))  # type: ignore[type-var]
    assert metric.compute(repeated) == value
    assert dict(metric.fingerprint(repeated)) == fingerprint


@every_metric
def test_global_generator_keeps_its_state(name: str, outputs: RunOutputs) -> None:
    before = torch.random.get_rng_state()
    value_or_reason(METRICS[name], outputs)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_metric
def test_labels_are_required_only_if_declared(name: str, outputs: RunOutputs) -> None:
    metric = METRICS[name]
    unlabelled = replace(outputs, data=replace(outputs.data, train_labels=None, test_labels=None))
    is_refused = "no classes" in str(value_or_reason(metric, unlabelled))
    assert is_refused == ("labels" in metric.needs)


@every_metric
def test_factors_are_required_only_if_declared(name: str, outputs: RunOutputs) -> None:
    metric = METRICS[name]
    unfactored = replace(outputs, data=replace(outputs.data, factors=None))
    is_refused = "no factors" in str(value_or_reason(metric, unfactored))
    assert is_refused == ("factors" in metric.needs)


def test_metrics_are_listed_without_importing_heavy_packages() -> None:
    program = (
        "import sys; from hgmvae_bench.plugins.registry import METRICS; "
        "[METRICS[n] for n in METRICS]; "
        "heavy = {'numpy', 'torch', 'sklearn', 'scipy', 'torch_fidelity', 'lpips'}; "
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
