from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hgmvae_bench.data import ImageData, catalogue
from hgmvae_bench.data.sprites import FACTOR_SIZES, N_IMAGES, SHAPES, SPRITES, render


@pytest.fixture(scope="module")
def sprites() -> ImageData:
    return SPRITES.load(Path(), image_size=32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return render(32)


def test_the_digest_is_that_of_the_documented_recipe(sprites: ImageData) -> None:
    assert sprites.digest == "08ca5d0acad17bcebfdc19650a928044544835de1b3c00bbe1a3bb3e7b8ea7ce"


def test_every_combination_of_factors_is_in_one_split(sprites: ImageData) -> None:
    factors = sprites.factors
    assert factors is not None
    assert factors.sizes == (3, 4, 12, 16, 16)
    assert factors.train.shape == (32_768, 5)
    assert factors.test.shape == (4_096, 5)
    numbers = np.ravel_multi_index(torch.cat([factors.train, factors.test]).T.numpy(), FACTOR_SIZES)
    assert sorted(numbers.tolist()) == list(range(N_IMAGES))


def test_every_image_differs_from_the_others(images: np.ndarray) -> None:
    assert len({image.tobytes() for image in images.reshape(N_IMAGES, -1)}) == 36_864


def test_images_belong_to_their_factors(sprites: ImageData, images: np.ndarray) -> None:
    assert sprites.factors is not None
    assert sprites.test_labels is not None
    for values, image, label in zip(
        sprites.factors.test[:50], sprites.test_images, sprites.test_labels, strict=False
    ):
        assert np.array_equal(images[tuple(values)], image[0].numpy())
        assert SHAPES[label] == SHAPES[values[0]]


def test_x_moves_right_and_y_down_by_one_pixel(images: np.ndarray) -> None:
    for axis, pixels in ((3, 6), (4, 5)):
        first, last = np.take(images, 0, axis), np.take(images, 15, axis)
        assert np.array_equal(np.roll(first, 15, axis=pixels - 1), last)


def test_no_shape_touches_the_border_pixels(images: np.ndarray) -> None:
    for border in (images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]):
        assert border.max() == 0


def test_area_grows_with_the_square_of_the_scale(images: np.ndarray) -> None:
    area = images.mean(axis=(2, 3, 4, 5, 6))
    ratio = area / area[:, :1]
    assert ratio == pytest.approx(np.tile((np.array([4, 5, 6, 7]) / 4) ** 2, (3, 1)), rel=0.02)


def test_a_quarter_turn_is_exact(images: np.ndarray) -> None:
    centred = images[:, :, :, 8, 8, 1:, 1:]
    assert np.array_equal(np.rot90(centred[:, :, 0], axes=(2, 3)), centred[:, :, 3])


def test_larger_images_show_the_same(sprites: ImageData) -> None:
    large = SPRITES.load(Path(), image_size=64)
    halved = torch.nn.functional.avg_pool2d(large.test_images.float(), 2)
    # One of 16 rows of samples per pixel, and rounding.
    assert (halved - sprites.test_images).abs().max() <= 255 / 16 + 1.25
    with pytest.raises(ValueError, match="not a multiple of 32"):
        SPRITES.load(Path(), image_size=48)


def test_validation_images_keep_their_factors(sprites: ImageData) -> None:
    held_out = catalogue.resolve_dataset("validation:sprites").load(Path(), image_size=32)
    assert held_out.factors is not None
    assert sprites.factors is not None
    assert held_out.factors.test.shape == (3_276, 5)
    training = {image.numpy().tobytes() for image in sprites.train_images}
    assert all(image.numpy().tobytes() in training for image in held_out.test_images[:50])
    expected = render(32)[tuple(held_out.factors.test[7])]
    assert np.array_equal(held_out.test_images[7, 0].numpy(), expected)
