from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hgmvae_bench.data import DataError
from hgmvae_bench.data.catalogue import check, fetch, resolve_dataset
from hgmvae_bench.data.digits import DIGITS
from hgmvae_bench.data.validation import VALIDATION
from hgmvae_bench.plugins.protocols import UnknownNameError


def test_held_out_training_images_replace_the_test_images(tmp_path: Path) -> None:
    whole = DIGITS.load(tmp_path, image_size=32)
    data = resolve_dataset("validation:digits").load(tmp_path, image_size=32)
    assert len(data.test_images) == len(whole.train_images) // 10 == 143
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    # Both parts together are the training images, without any test image.
    assert torch.equal(both.unique(dim=0), whole.train_images.flatten(1).unique(dim=0))
    assert data.digest == whole.with_validation_as_test().digest != whole.digest


def test_its_description_is_that_of_the_other_dataset() -> None:
    chairs, split = resolve_dataset("3d-chairs"), resolve_dataset("validation:3d-chairs")
    for name in ("image_size", "channels", "reconstruction_loss", "reference"):
        assert getattr(split, name) == getattr(chairs, name)
    assert split.title == "3D Chairs (validation)"


def test_it_fetches_and_checks_the_files_of_the_other_dataset(tmp_path: Path) -> None:
    fetch("validation:digits", tmp_path)
    assert check("validation:digits", tmp_path) == check("digits", tmp_path)
    assert not check("validation:mnist", tmp_path).complete


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("", ValueError, "needs a dataset's name, as in validation:mnist"),
        ("mnits", UnknownNameError, "did you mean mnist"),
        ("validation:mnist", ValueError, "'validation:mnist' is a validation split already"),
    ],
)
def test_an_argument_that_names_no_dataset_is_refused(
    argument: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve_dataset(f"validation:{argument}")


def test_without_an_argument_every_operation_is_refused(tmp_path: Path) -> None:
    for act in (
        lambda: VALIDATION.load(tmp_path, image_size=32),
        lambda: fetch("validation", tmp_path),
        lambda: check("validation", tmp_path),
    ):
        with pytest.raises(DataError, match=r"dataset.*validation:mnist"):
            act()
