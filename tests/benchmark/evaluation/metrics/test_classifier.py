"""The classifier behind ``fid-classifier``: trained once, seeded, kept whole."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from hgmvae_bench.evaluation.metrics import classifier
from hgmvae_bench.evaluation.metrics.classifier import Classifier, trained_classifier
from hgmvae_bench.plugins.protocols import MetricMissingError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(quick_classifier: None) -> None:
    pass


def test_is_trained_once(digits, tmp_path, monkeypatch) -> None:
    before = torch.random.get_rng_state()
    path, description = trained_classifier(digits, "digits", tmp_path, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert description.n_train_images == len(digits.train_images)
    assert 0.5 < description.test_accuracy <= 1
    assert json.loads((path.parent / "classifier.json").read_text())["dataset"] == "digits"

    monkeypatch.setattr(classifier, "_train", None)
    assert trained_classifier(digits, "digits", tmp_path, CPU) == (path, description)
    kept = [p.name for p in path.parent.parent.iterdir() if not p.name.endswith(".lock")]
    assert kept == [path.parent.name]


def test_is_the_same_anywhere(digits, tmp_path) -> None:
    _, first = trained_classifier(digits, "digits", tmp_path / "a", CPU)
    torch.manual_seed(1)
    _, second = trained_classifier(digits, "digits", tmp_path / "b", CPU)
    assert first == second


def test_other_data_have_another(digits, tmp_path) -> None:
    path, _ = trained_classifier(digits, "digits", tmp_path, CPU)
    fewer, _ = trained_classifier(digits.first_train_images(200), "digits", tmp_path, CPU)
    assert fewer != path


def test_any_labels_will_do(digits, tmp_path) -> None:
    """Chairs' test identities are not among those trained on; labels need not start at 0."""
    odd = digits.train_labels % 2 == 1
    data = replace(
        digits,
        train_images=digits.train_images[odd],
        train_labels=digits.train_labels[odd] * 10,
    )
    path, description = trained_classifier(data, "odd", tmp_path, CPU)
    assert description.test_accuracy == 0
    state = torch.nn.Module.state_dict(Classifier(1, 5))
    assert classifier.load(path.read_bytes()).keys() == state.keys()


def test_test_images_without_labels(digits, tmp_path) -> None:
    _, description = trained_classifier(replace(digits, test_labels=None), "d", tmp_path, CPU)
    assert description.test_accuracy is None


@pytest.mark.parametrize(
    ("labels", "reason"), [(None, "no classes"), (torch.zeros(1437).long(), "one class")]
)
def test_nothing_to_tell_apart(labels, reason, digits, tmp_path) -> None:
    with pytest.raises(MetricMissingError, match=reason):
        trained_classifier(replace(digits, train_labels=labels), "digits", tmp_path, CPU)


@pytest.mark.parametrize("name", ["weights.safetensors", "classifier.json"])
def test_damaged(name, digits, tmp_path) -> None:
    path, _ = trained_classifier(digits, "digits", tmp_path, CPU)
    (path.parent / name).write_text("{}")
    with pytest.raises(MetricMissingError, match=f"{path.parent} is damaged; delete"):
        trained_classifier(digits, "digits", tmp_path, CPU)


def test_no_room_for_it(digits, tmp_path) -> None:
    (tmp_path / "classifiers").write_text("a file where the folder should be")
    with pytest.raises(MetricMissingError, match="cannot be kept"):
        trained_classifier(digits, "digits", tmp_path, CPU)


def test_is_trained_once_however_many_ask(digits, tmp_path, monkeypatch) -> None:
    train, trained = classifier._train, []

    def slow(*arguments):
        trained.append(True)
        time.sleep(0.3)
        return train(*arguments)

    monkeypatch.setattr(classifier, "_train", slow)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(trained_classifier, digits, "digits", tmp_path, CPU) for _ in range(3)]
        assert len({answer.result()[1] for answer in asked}) == 1
    assert trained == [True]


@pytest.mark.slow
def test_learns_the_digits(digits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(classifier, "STEPS", 300)
    _, description = trained_classifier(digits, "digits", tmp_path, CPU)
    assert description.test_accuracy > 0.97
