from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import pad_to


def numbered(n_train: int, n_test: int = 4, n_classes: int | None = None) -> ImageData:
    """1×1 images whose pixel is their number (modulo 256)."""
    images = torch.arange(n_train + n_test).to(torch.uint8)[:, None, None, None]
    labels = None if n_classes is None else torch.arange(n_train + n_test) % n_classes
    return ImageData(
        train_images=images[:n_train],
        train_labels=None if labels is None else labels[:n_train],
        test_images=images[n_train:],
        test_labels=None if labels is None else labels[n_train:],
    )


def pixels(images: torch.Tensor) -> list[int]:
    return images.flatten().tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": torch.zeros(2, 1, 4, 4)}, "train images are torch.float32"),
        (
            {"test_images": torch.zeros(2, 4, 4, dtype=torch.uint8)},
            r"expected uint8 \(N, C, H, W\)",
        ),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "train labels"),
        ({"test_labels": torch.zeros(2, dtype=torch.uint8)}, "test labels"),
        ({"test_images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "expected one shape"),
        ({"class_names": ("a", "b")}, r"train labels are 0 to 2, expected 0 to 1: .* has 2 names"),
        ({"train_labels": torch.tensor([-1, 0]), "class_names": ("a", "b", "c")}, "are -1 to 0"),
        ({"validation_images": torch.zeros(2, 1, 5, 5, dtype=torch.uint8)}, "validation images"),
    ],
)
def test_invalid_image_data_is_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 2])
    parts = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
    }
    with pytest.raises(ValueError, match=message):
        ImageData(**{**parts, **changed})


def test_the_digest_depends_only_on_the_content() -> None:
    data = numbered(6, n_classes=2)
    assert data.digest == numbered(6, n_classes=2).digest
    assert data.digest != numbered(6).digest
    one_pixel = data.train_images.clone()
    one_pixel[3] += 1
    changed = ImageData(one_pixel, data.train_labels, data.test_images, data.test_labels)
    assert changed.digest != data.digest
    # The same bytes, split elsewhere.
    assert numbered(5, 5, n_classes=2).digest != data.digest


def test_a_part_of_the_data_has_another_digest() -> None:
    data = numbered(6)
    vars(data)["digest"] = "from the cache"
    assert len({data.digest, data.first_train_images(3).digest, numbered(6).digest}) == 3
    assert data.with_validation_as_test(2).digest != "from the cache"


@settings(max_examples=25)
@given(n_train=st.integers(4, 200), fraction=st.floats(0.01, 0.9))
def test_held_out_images_come_from_training_alone(n_train: int, fraction: float) -> None:
    data = numbered(n_train)
    count = max(1, min(n_train - 1, round(n_train * fraction)))
    held_out = data.with_validation_as_test(count)
    assert len(held_out.test_images) == count
    train, test = pixels(held_out.train_images), pixels(held_out.test_images)
    assert sorted(train + test) == pixels(data.train_images)
    assert train == sorted(train)
    assert not set(test) & set(pixels(data.test_images))
    assert pixels(data.with_validation_as_test(count).test_images) == test


def test_held_out_images_keep_the_proportions_of_the_classes() -> None:
    data = numbered(120, n_classes=4)
    held_out = data.with_validation_as_test(20)
    assert held_out.test_labels is not None
    assert held_out.train_labels is not None
    assert held_out.test_labels.bincount().tolist() == [5, 5, 5, 5]
    assert pixels(held_out.test_images % 4) == held_out.test_labels.tolist()
    assert pixels(held_out.train_images % 4) == held_out.train_labels.tolist()


def test_a_tenth_is_held_out_by_default() -> None:
    assert len(numbered(50).with_validation_as_test().test_images) == 5


def test_the_validation_split_of_the_dataset_is_used() -> None:
    plain = numbered(6, n_classes=2)
    data = ImageData(
        train_images=plain.train_images,
        train_labels=plain.train_labels,
        test_images=plain.test_images,
        test_labels=plain.test_labels,
        validation_images=plain.train_images + 100,
        validation_labels=plain.train_labels,
    )
    assert data.digest != plain.digest
    held_out = data.with_validation_as_test(4)
    assert held_out.train_images is data.train_images
    assert pixels(held_out.test_images) == [100, 101, 102, 103]
    assert held_out.test_labels is not None
    assert held_out.test_labels.tolist() == [0, 1, 0, 1]
    assert held_out.validation_images is None
    assert len(data.with_validation_as_test().test_images) == 6
    with pytest.raises(ValueError, match="validation split has 6"):
        data.with_validation_as_test(7)


@pytest.mark.parametrize("count", [0, 6, 7])
def test_some_images_must_remain_for_training(count: int) -> None:
    with pytest.raises(ValueError, match="taken from 6 training images"):
        numbered(6).with_validation_as_test(count)


def test_the_first_training_images_are_kept() -> None:
    data = numbered(6, n_classes=3)
    assert data.first_train_images(None) is data
    few = data.first_train_images(2)
    assert pixels(few.train_images) == [0, 1]
    assert few.train_labels is not None
    assert few.train_labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="only 6"):
        data.first_train_images(7)


def test_padding_is_even_and_black() -> None:
    padded = pad_to(torch.full((1, 1, 2, 2), 9, dtype=torch.uint8), 4)
    assert padded.sum() == 36
    assert padded[0, 0, 1:3, 1:3].eq(9).all()
    for size in (1, 3):
        with pytest.raises(ValueError, match="cannot zero-pad 2 px"):
            pad_to(torch.zeros(1, 1, 2, 2), size)
