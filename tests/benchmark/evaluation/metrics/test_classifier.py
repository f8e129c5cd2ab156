"""The classifier behind ``fid-classifier``: trained once, seeded, and cached atomically."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from hgmvae_bench.evaluation.metrics import classifier
from hgmvae_bench.evaluation.metrics.classifier import (
    Classifier,
    ClassifierDescription,
    trained_classifier,
)
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.plugins.registry import DATASETS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits at 16 px, on which a training step takes a quarter of the time."""
    return DATASETS["digits"].load(tmp_path_factory.mktemp("no files"), image_size=16)


@pytest.fixture
def few_steps(monkeypatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", 5)


@pytest.fixture(scope="module")
def trained_cache(digits, tmp_path_factory):
    """Cache folder with the digits' classifier, and the random state before and after training."""
    cache = tmp_path_factory.mktemp("cache")
    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 150)
        trained_classifier(digits, "digits", cache, CPU)
    return cache, before, torch.random.get_rng_state()


@pytest.fixture
def cache(trained_cache, tmp_path, monkeypatch):
    """Copy of the trained cache; training again raises an error."""
    monkeypatch.setattr(classifier, "train_classifier", None)
    return shutil.copytree(trained_cache[0], tmp_path / "cache")


def test_learns_the_digits(digits, cache) -> None:
    path, description = trained_classifier(digits, "digits", cache, CPU)
    assert description.n_train_images == len(digits.train_images)
    assert description.test_accuracy > 0.97
    stored = json.loads((path.parent / "classifier.json").read_text())
    assert ClassifierDescription(**stored) == description
    assert stored["dataset"] == "digits"


def test_is_trained_once(digits, cache) -> None:
    path, description = trained_classifier(digits, "digits", cache, CPU)
    assert trained_classifier(digits, "digits", cache, CPU) == (path, description)
    folders = [p.name for p in path.parent.parent.iterdir() if not p.name.endswith(".lock")]
    assert folders == [path.parent.name]


@pytest.mark.parametrize("dataset", ["folder:/data/faces", "folder:../../../../faces"])
def test_a_path_in_a_datasets_name_does_not_leave_the_cache(
    dataset, digits, tmp_path, few_steps
) -> None:
    path, description = trained_classifier(digits, dataset, tmp_path / "cache", CPU)
    assert path.parent.parent == tmp_path / "cache" / "classifiers"
    assert description.dataset == dataset
    assert [child.name for child in (tmp_path / "cache").iterdir()] == ["classifiers"]


def test_leaves_the_global_generator_alone(trained_cache) -> None:
    _, before, after = trained_cache
    assert torch.equal(before, after)


def test_training_is_reproducible(digits, tmp_path, few_steps) -> None:
    _, first = trained_classifier(digits, "digits", tmp_path / "a", CPU)
    torch.manual_seed(1)
    _, second = trained_classifier(digits, "digits", tmp_path / "b", CPU)
    assert first == second


def test_other_data_get_another_classifier(digits, cache, monkeypatch) -> None:
    path, _ = trained_classifier(digits, "digits", cache, CPU)
    monkeypatch.undo()
    monkeypatch.setattr(classifier, "STEPS", 5)
    subset, _ = trained_classifier(digits.first_train_images(200), "digits", cache, CPU)
    assert subset != path


def test_labels_may_be_any_integers(digits, tmp_path, few_steps) -> None:
    """The test identities of 3D Chairs are not among the training identities."""
    odd = digits.train_labels % 2 == 1
    data = replace(
        digits,
        train_images=digits.train_images[odd],
        train_labels=digits.train_labels[odd] * 10,
        class_names=(),
    )
    path, description = trained_classifier(data, "odd", tmp_path, CPU)
    assert description.test_accuracy == 0
    state = torch.nn.Module.state_dict(Classifier(1, 5))
    assert classifier.load(path.read_bytes()).keys() == state.keys()


def test_accuracy_is_unknown_without_test_labels(digits, tmp_path, few_steps) -> None:
    _, description = trained_classifier(replace(digits, test_labels=None), "d", tmp_path, CPU)
    assert description.test_accuracy is None


@pytest.mark.parametrize(
    ("labels", "reason"), [(None, "no classes"), (torch.zeros(1437).long(), "one class")]
)
def test_fewer_than_two_classes_are_refused(labels, reason, digits, tmp_path) -> None:
    with pytest.raises(MetricMissingError, match=reason):
        trained_classifier(replace(digits, train_labels=labels), "digits", tmp_path, CPU)


@pytest.mark.parametrize("name", ["weights.safetensors", "classifier.json"])
def test_damaged_file_is_reported(name, digits, cache) -> None:
    path, _ = trained_classifier(digits, "digits", cache, CPU)
    (path.parent / name).write_text("{}")
    with pytest.raises(MetricMissingError, match=f"{path.parent} is damaged; delete"):
        trained_classifier(digits, "digits", cache, CPU)


def test_unwritable_cache_is_reported(digits, tmp_path) -> None:
    (tmp_path / "classifiers").write_text("a file in place of the folder")
    with pytest.raises(MetricMissingError, match="cannot be stored"):
        trained_classifier(digits, "digits", tmp_path, CPU)


def test_concurrent_requests_train_once(digits, tmp_path, few_steps, monkeypatch) -> None:
    train, calls, requested = classifier.train_classifier, [], threading.Barrier(3, timeout=60)

    def counted(*arguments):
        calls.append(arguments)
        return train(*arguments)

    def request():
        requested.wait()
        return trained_classifier(digits, "digits", tmp_path, CPU)

    monkeypatch.setattr(classifier, "train_classifier", counted)
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(request) for _ in range(3)]
        assert len({r.result()[1] for r in requests}) == 1
    assert len(calls) == 1
