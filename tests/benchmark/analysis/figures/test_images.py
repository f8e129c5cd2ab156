"""Figures of images that models generate."""

from dataclasses import replace

import numpy as np
import torch

from hgmvae_bench.analysis.figures import FIGURES
from hgmvae_bench.analysis.figures.images import interpolate, mosaic, representatives, traverse
from hgmvae_bench.data import ImageData
from hgmvae_bench.utils.seeding import derive_seed


def pictures(panel):
    return np.asarray(panel.get_images()[0].get_array())


def pixels(image):
    return image.permute(1, 2, 0).expand(-1, -1, 3).numpy()


def test_fig_5a_shows_originals_and_reconstructions(source, digits, tile):
    figure = FIGURES["5a"].draw(source)
    places = representatives(digits, 20)
    assert len(figure.axes) == 2
    for block, panel in enumerate(figure.axes):
        picture = pictures(panel)
        names = [label.get_text() for label in panel.get_yticklabels()]
        assert names == ["original", "VAE", "WAE-IMQ"]
        for column in range(10):
            image = digits.test_images[places[block * 10 + column]]
            np.testing.assert_array_equal(tile(picture, 0, column), pixels(image))
            for row, model in enumerate(("vae", "wae-imq"), start=1):
                codec = source.codec(model, source.runs_to_draw()[model])
                code = torch.from_numpy(codec.encode(image[None]))
                expected = pixels(codec.decode(code)[0])
                # Rounding differs between batch sizes.
                difference = tile(picture, row, column).astype(int) - expected
                assert np.abs(difference).max() <= 1


def test_fig_5b_has_the_reconstructions_at_its_corners_and_the_mean_code_between(
    source, digits, tile
):
    selected = source.select(models=["vae"])
    picture = pictures(FIGURES["5b"].draw(selected, side=3).axes[0])
    corners = digits.test_images[representatives(digits, 4)]
    codec = selected.codec("vae", selected.runs_to_draw()["vae"])
    codes = codec.encode(corners)
    rebuilt = codec.decode(torch.from_numpy(codes))
    for i, (row, outer, inner) in enumerate([(0, 0, 1), (0, 4, 3), (2, 0, 1), (2, 4, 3)]):
        np.testing.assert_array_equal(tile(picture, row, outer), pixels(corners[i]))
        difference = tile(picture, row, inner).astype(int) - pixels(rebuilt[i])
        assert np.abs(difference).max() <= 1
    middle = codec.decode(torch.from_numpy(codes.mean(axis=0, keepdims=True)))[0]
    assert np.abs(tile(picture, 1, 2).astype(int) - pixels(middle)).max() <= 1


def test_interpolation_is_bilinear():
    corners = np.array([[0, 0], [2, 0], [0, 4], [2, 8]], np.float32)
    codes = interpolate(corners, 3).reshape(3, 3, 2)
    assert codes[0, 1].tolist() == [1, 0]
    assert codes[1, 0].tolist() == [0, 2]
    assert codes[1, 1].tolist() == [1, 3]
    assert codes[2, 2].tolist() == [2, 8]


def test_fig_6_changes_one_dimension_at_a_time(source, digits, tile):
    selected = source.select(models=["vae"])
    figure = FIGURES["6"].draw(selected, image=5, n_steps=5)
    (panel,) = figure.axes
    codes = selected.codes(selected.runs_to_draw()["vae"])
    names = [label.get_text().split(" (")[0] for label in panel.get_yticklabels()]
    widest = int(codes.std(axis=0).argmax()) + 1
    assert names == ["image, reconstruction", f"dimension {widest}", f"dimension {3 - widest}"]
    codec = selected.codec("vae", selected.runs_to_draw()["vae"])
    code = codec.encode(digits.test_images[5:6])[0]
    code[widest - 1] = codes[:, widest - 1].mean() - 3 * codes[:, widest - 1].std()
    expected = pixels(codec.decode(torch.from_numpy(code[None]))[0])
    assert np.abs(tile(pictures(panel), 1, 0).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(tile(pictures(panel), 0, 0), pixels(digits.test_images[5]))
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        "-3",
        "-1.5",
        "0",
        "1.5",
        "3",
    ]


def test_a_traversal_changes_one_dimension():
    codes = np.array([[0, 1], [2, 1]], np.float32)
    traversed = traverse(np.array([7, 9], np.float32), codes, 0, np.array([-1.0, 0.0, 2.0]))
    assert traversed.tolist() == [[0, 9], [1, 9], [3, 9]]


def test_samples_are_the_first_that_metrics_use(source, digits):
    figure = FIGURES["samples"].draw(source, side=3)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["test images", "VAE", "WAE-IMQ"]
    run = source.runs_to_draw()["vae"]
    codec = source.codec("vae", run)
    sampled = codec.sample(len(digits.test_images), derive_seed(run.record.key, "samples"))
    difference = pictures(figure.axes[1]).astype(int) - mosaic(sampled[:9], 3)
    assert np.abs(difference).max() <= 1


def test_representatives_alternate_between_classes():
    labels = torch.tensor([1, 1, 0, 1, 0])
    images = torch.zeros(5, 1, 1, 1, dtype=torch.uint8)
    data = ImageData(images, labels, images, labels)
    assert representatives(data, 4) == [2, 0, 4, 1]
    unlabelled = replace(data, train_labels=None, test_labels=None)
    assert representatives(unlabelled, 9) == [0, 1, 2, 3, 4]
