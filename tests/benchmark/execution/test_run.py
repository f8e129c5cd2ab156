"""A single run in this process, from settings to record."""

from __future__ import annotations

import pytest

from hgmvae_bench.data import ImageData
from hgmvae_bench.execution.run import AlreadyRecordedError, execute_run, rescore
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Grid, Run, parse_grid
from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.storage.schema import MetricValue, Record, ScoreRecord
from hgmvae_bench.storage.store import Store


@pytest.fixture
def run(tiny_grid: Grid, digits: ImageData) -> Run:
    return Run(next(iter(tiny_grid.cells)), 0, digits.digest)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def test_the_first_record_of_a_run_and_its_artifacts_stay(run, digits, store) -> None:
    first = Record.of(run, status="complete", metrics={"sc": MetricValue(value=0.5)})
    store.add(first, 0, {"model.safetensors": b"the first's"})
    with pytest.raises(AlreadyRecordedError):
        execute_run(run, digits, ["sc"], RunContext(store), number=0)
    assert store.runs()[run.key].record == first
    assert (store.artifact_folder(run.key) / "model.safetensors").read_bytes() == b"the first's"


def test_the_first_score_record_of_a_run_stays(run, digits, store) -> None:
    execute_run(run, digits, [], RunContext(store), number=0)
    stored = store.runs()[run.key]
    first = {"sc": MetricValue(value=0.5)}
    store.add_scores(ScoreRecord(key=run.key, record_sha256=stored.sha256, metrics=first), 1)
    with pytest.raises(AlreadyRecordedError):
        rescore(stored, run, digits, ["ssim"], RunContext(store), number=1)
    assert store.runs()[run.key].metrics == first


METRICS = """
import sys

class Metric:
    title, reference, direction, cost, needs = "Odd", "none", "lower", "cheap", ()
    range = (0.0, 1.0)

    def __init__(self, value, fingerprint):
        self.value, self.own = value, fingerprint

    def compute(self, outputs):
        if self.value == "exits":
            sys.exit(3)
        return self.value

    def fingerprint(self, outputs):
        return self.own

METRICS = {
    "well": Metric(0.5, {"n": 1}),
    "no-value": Metric(None, {"n": 1}),
    "odd-fingerprint": Metric(0.5, {"sizes": [1, 2]}),
    "exits": Metric("exits", {}),
    "lacking": object(),
}
"""


def test_a_metric_whose_value_or_fingerprint_is_invalid_is_recorded_as_missing(
    run, digits, store
) -> None:
    with using_plugins([LocalPlugin("odd.py", METRICS)]):
        names = ["no-value", "odd-fingerprint", "well"]
        record = execute_run(run, digits, names, RunContext(store))
    assert record.status == "complete"
    missing = {name: value.missing for name, value in record.metrics.items()}
    assert missing["no-value"].startswith("error: TypeError: ")
    assert "NoneType" in missing["no-value"]
    assert missing["odd-fingerprint"].startswith("error: ValidationError: ")
    assert "sizes" in missing["odd-fingerprint"]
    assert missing["well"] is None


def test_a_metric_that_exits_or_cannot_be_loaded_is_recorded_as_missing(run, digits, store) -> None:
    with using_plugins([LocalPlugin("odd.py", METRICS)]):
        record = execute_run(run, digits, ["exits", "lacking", "well"], RunContext(store))
    assert (record.status, record.error) == ("complete", None)
    assert record.metrics["exits"].missing == "error: SystemExit: 3"
    assert record.metrics["lacking"].missing.startswith("error: PluginError: the metric 'lacking'")
    assert record.metrics["well"].value == 0.5


MODEL = """
import torch
from hgmvae_bench.plugins.registry import MODELS as KNOWN

class Odd:
    title, reference, settings = "Odd", "none", {}
    def build(self, *, settings, **rest):
        model = KNOWN["vae"].build(settings={}, **rest)
        forward = model.forward
        def odd(inputs, *, epoch, **options):
            output = forward(inputs, epoch=epoch, **options)
            model.steps += 1
            CHANGE
            return output
        model.forward, model.steps = odd, 0
        return model

MODELS = {"odd": Odd()}
"""


@pytest.fixture
def trained(tiny_text, digits, store):
    """A function that trains a VAE whose output a line of code changes, and returns its record."""

    def train(change: str) -> Record:
        text = tiny_text.replace("[vae, wae-imq]", "[odd]").replace("epochs: 1,", "epochs: 2,")
        with using_plugins([LocalPlugin("odd.py", MODEL.replace("CHANGE", change))]):
            (cell,) = parse_grid(text, "tiny.yaml").cells
            run = Run(cell, 0, digits.digest)
            return execute_run(run, digits, ["sc"], RunContext(store))

    return train


def test_a_non_finite_loss_term_is_a_divergence(trained, store) -> None:
    record = trained("output['oddity'] = torch.tensor(1.0 if epoch == 1 else float('nan'))")
    assert (record.status, record.error) == (
        "diverged",
        "epoch 2, mean over 2 steps: oddity is not finite",
    )
    assert record.history["oddity"] == [1.0]
    assert store.runs()[record.key].record == record


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (  # A finite value with a non-finite gradient.
            "output['loss'] = output['loss'] + (0 * output['z'].sum()).sqrt()",
            "epoch 2, after step 2: the weights are not finite",
        ),
        (  # Like finite weights whose codes overflow.
            "model.latent_code = lambda data: torch.full((len(data), 2), float('inf'))",
            "after training: the model's codes are not all finite",
        ),
    ],
)
def test_non_finite_weights_or_codes_after_the_last_step_are_a_divergence(
    trained, store, change, error
) -> None:
    record = trained(f"if model.steps == 4: {change}")
    assert (record.status, record.error) == ("diverged", error)
    assert record.metrics == {}
    assert not store.artifact_folder(record.key).exists()
