from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hgmvae_bench.plugins.factors import Factors
from hgmvae_bench.plugins.image_data import ImageData

TRAIN = torch.tensor([[0, 2], [1, 0], [0, 1], [1, 1]])
TEST = torch.tensor([[0, 0], [1, 2]])


def factors(**changed: Any) -> Factors:
    content: dict[str, Any] = {"names": ("a", "b"), "sizes": (2, 3), "train": TRAIN, "test": TEST}
    return Factors(**{**content, **changed})


def images(factors: Factors | None = None, n_validation: int | None = None) -> ImageData:
    pixels = torch.arange(4, dtype=torch.uint8)[:, None, None, None]
    return ImageData(
        train_images=pixels,
        train_labels=None,
        test_images=pixels[:2],
        test_labels=None,
        validation_images=None if n_validation is None else pixels[:n_validation],
        factors=factors,
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("a",)}, "one size per name"),
        ({"names": ("a", "a")}, "no name twice"),
        ({"names": (), "sizes": ()}, "at least 2"),
        ({"sizes": (1, 3)}, "at least 2"),
        ({"train": TRAIN.float()}, "train factors are torch.float32"),
        ({"test": TEST[:, :1]}, r"expected int64 \(N, 2\)"),
        ({"test": TEST + 1}, "test factors have values outside"),
        ({"train": TRAIN - 1}, "train factors have values outside"),
    ],
)
def test_invalid_factors_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factors(**changed)


@pytest.mark.parametrize(
    "changed", [{"train": TRAIN[:3]}, {"test": TEST[:1]}, {"validation": TEST}]
)
def test_factors_of_another_number_of_images_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="factors are of"):
        images(factors(**changed))


def test_every_factor_is_part_of_the_digest() -> None:
    other = TRAIN.clone()
    other[0, 0] = 1
    digests = [
        images(changed).digest
        for changed in (
            None,
            factors(),
            factors(train=other),
            factors(names=("a", "c")),
            factors(sizes=(2, 4)),
        )
    ]
    assert len(set(digests)) == 5
    assert images(factors()).digest == digests[1]


def test_the_first_training_images_keep_their_factors() -> None:
    first = images(factors()).first_train_images(3)
    assert first.factors == replace(factors(), train=first.factors.train)  # type: ignore[union-attr]
    assert torch.equal(first.factors.train, TRAIN[:3])  # type: ignore[union-attr]


def test_held_out_training_images_keep_their_factors() -> None:
    held_out = images(factors()).with_validation_as_test(2)
    assert held_out.factors is not None
    for split in ("train", "test"):
        numbers = getattr(held_out, f"{split}_images").flatten().long()
        assert torch.equal(getattr(held_out.factors, split), TRAIN[numbers])


def test_validation_images_keep_their_factors() -> None:
    data = images(factors(validation=TRAIN[:3]), n_validation=3).with_validation_as_test(2)
    assert data.factors is not None
    assert torch.equal(data.factors.test, TRAIN[:2])
    assert data.factors.validation is None
    assert torch.equal(data.factors.train, TRAIN)
