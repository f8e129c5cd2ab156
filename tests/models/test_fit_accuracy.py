"""Known answers of the metric ``fit-accuracy``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hgmvae import mixture
from hgmvae.fit_accuracy import FIT_ACCURACY


@dataclass
class Codes:
    """Outputs of a run with given codes."""

    train_codes: npt.NDArray[np.float32]
    test_codes: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]
    base_seed: int = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def n_classes(self) -> int:
        return len(np.unique(self.test_labels))

    def seed(self, purpose: str) -> int:
        return self.base_seed + len(purpose)


def rings(n_codes: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Two concentric rings: clusters that two Gaussians or k-means cannot separate."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_codes) % 2
    angle = generator.uniform(0, 2 * np.pi, n_codes)
    radius = 1 + 4 * labels + generator.normal(0, 0.1, n_codes)
    codes = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return codes.astype(np.float32), labels


def blobs(n_codes: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three well separated Gaussians."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_codes) % 3
    centres = np.array([[0, 0], [20, 0], [0, 30]])
    return (centres[labels] + generator.normal(size=(n_codes, 2))).astype(np.float32), labels


def outputs(make, n_train=600, n_test=90) -> Codes:
    return Codes(make(n_train, 0)[0], *make(n_test, 1))


def test_planted_clusters_are_found() -> None:
    assert FIT_ACCURACY.compute(outputs(blobs)) == 1


def test_clusters_need_not_be_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "SUBCOMPONENTS", 10)
    assert FIT_ACCURACY.compute(outputs(rings, n_train=2000)) > 0.98


def test_an_image_in_the_wrong_cluster_counts_against_the_accuracy() -> None:
    given = outputs(blobs)
    labels = given.test_labels.copy()
    labels[0] = 1
    assert FIT_ACCURACY.compute(replace(given, test_labels=labels)) == pytest.approx(89 / 90)


def test_equal_codes_have_the_share_of_the_largest_class() -> None:
    labels = np.repeat([0, 1, 2], [30, 40, 20])
    given = Codes(np.ones((50, 2), np.float32), np.ones((90, 2), np.float32), labels)
    assert FIT_ACCURACY.compute(given) == pytest.approx(40 / 90)


def test_the_seed_decides_the_value() -> None:
    generator = np.random.default_rng(0)
    noise = [generator.normal(size=(n, 2)).astype(np.float32) for n in (300, 999)]
    given = Codes(*noise, np.arange(999) % 3)
    # Far apart, because each value takes the best of the fits of four consecutive seeds.
    values = [FIT_ACCURACY.compute(replace(given, base_seed=seed)) for seed in (0, 0, 100, 200)]
    assert values[0] == values[1]
    assert len(set(values)) > 1


def test_the_largest_seed_leaves_room_for_all_fits() -> None:
    given = replace(outputs(blobs, n_train=60), base_seed=2**32 - 1 - len("fit-accuracy"))
    assert FIT_ACCURACY.compute(given) == 1


def test_the_number_of_fitted_codes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    fit = mixture.fit_clusters

    def record(codes, *rest):
        fitted.append(codes)
        return fit(codes, *rest)

    monkeypatch.setattr(mixture, "fit_clusters", record)
    monkeypatch.setattr(mixture, "MAX_CODES", 100)
    given = outputs(blobs)
    FIT_ACCURACY.compute(given)
    [codes] = fitted
    assert codes.shape == (100, 2)
    assert {tuple(code) for code in codes.tolist()} <= {
        tuple(c) for c in given.train_codes.tolist()
    }
    # Not the first ones, which may be of one class only.
    assert not np.array_equal(codes.numpy(), given.train_codes[:100])
    assert FIT_ACCURACY.fingerprint(given)["n_fitted"] == 100


def test_one_class_is_refused() -> None:
    given = replace(outputs(blobs), test_labels=np.zeros(90, np.int64))
    with pytest.raises(ValueError, match="one class"):
        FIT_ACCURACY.compute(given)
