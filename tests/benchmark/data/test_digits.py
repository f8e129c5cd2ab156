from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hgmvae_bench.data.catalogue import check, fetch
from hgmvae_bench.data.digits import DIGITS


def test_the_split_is_stratified_and_stays_the_same(root: Path) -> None:
    data = DIGITS.load(root, image_size=32)
    assert data.train_images.shape == (1437, 1, 32, 32)
    assert data.test_images.shape == (360, 1, 32, 32)
    assert data.train_labels is not None
    assert data.test_labels is not None
    share = data.test_labels.bincount() / (
        data.test_labels.bincount() + data.train_labels.bincount()
    )
    assert torch.all((share - 0.2).abs() < 0.01)
    assert data.class_names == tuple("0123456789")
    # The digest is part of every run key, so another value would change all keys.
    assert data.digest == "adbcccaa18793dd26dbb1bf58674b54521b015d0ebde6437fddf9469388f5933"
    assert data.digest == DIGITS.load(root / "elsewhere", image_size=32).digest


def test_enlarging_repeats_pixels(root: Path) -> None:
    small, large = (DIGITS.load(root, image_size=size).train_images for size in (8, 32))
    assert torch.equal(large[:, :, ::4, ::4], small)
    assert torch.equal(large[:, :, 3::4, 3::4], small)
    assert small.max() == 255


@pytest.mark.parametrize("size", [0, -8, 28])
def test_a_size_that_repetition_cannot_reach_is_refused(root: Path, size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        DIGITS.load(root, image_size=size)


def test_there_is_nothing_to_fetch(root: Path) -> None:
    fetch("digits", root)
    assert not list(root.iterdir())
    assert check("digits", root).complete
