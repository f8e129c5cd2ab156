"""Figures of images and codes: what a trained model makes of test images."""

from dataclasses import replace

import numpy as np
import torch

from hgmvae_bench.analysis.figures import FIGURES
from hgmvae_bench.analysis.figures.images import GAP, interpolate, mosaic, representatives, traverse
from hgmvae_bench.analysis.figures.latent import usage_by_class
from hgmvae_bench.data import ImageData
from hgmvae_bench.utils.seeding import derive_seed


def pictures(panel):
    return np.asarray(panel.get_images()[0].get_array())


def tile(picture, row, column, side=32):
    top, left = row * (side + GAP), column * (side + GAP)
    return picture[top : top + side, left : left + side]


def pixels(image):
    return image.permute(1, 2, 0).expand(-1, -1, 3).numpy()


def test_fig_5a_shows_the_models_reconstructions(source, digits):
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
                expected = pixels(codec.reconstruct(image[None])[0])
                # Batches of other sizes may round the last bit otherwise.
                difference = tile(picture, row, column).astype(int) - expected
                assert np.abs(difference).max() <= 1


def test_fig_5b_has_the_reconstructions_at_its_corners_and_the_mean_code_between(source, digits):
    selected = source.select(models=["vae"])
    picture = pictures(FIGURES["5b"].draw(selected, side=3).axes[0])
    corners = digits.test_images[representatives(digits, 4)]
    codec = selected.codec("vae", selected.runs_to_draw()["vae"])
    rebuilt = codec.reconstruct(corners)
    for i, (row, outer, inner) in enumerate([(0, 0, 1), (0, 4, 3), (2, 0, 1), (2, 4, 3)]):
        np.testing.assert_array_equal(tile(picture, row, outer), pixels(corners[i]))
        difference = tile(picture, row, inner).astype(int) - pixels(rebuilt[i])
        assert np.abs(difference).max() <= 1
    middle = codec.decode(torch.from_numpy(codec.encode(corners).mean(axis=0, keepdims=True)))[0]
    assert np.abs(tile(picture, 1, 2).astype(int) - pixels(middle)).max() <= 1


def test_interpolation_is_bilinear():
    corners = np.array([[0, 0], [2, 0], [0, 4], [2, 8]], np.float32)
    codes = interpolate(corners, 3).reshape(3, 3, 2)
    assert codes[0, 1].tolist() == [1, 0]
    assert codes[1, 0].tolist() == [0, 2]
    assert codes[1, 1].tolist() == [1, 3]
    assert codes[2, 2].tolist() == [2, 8]


def test_fig_6_changes_one_dimension_at_a_time(source, digits):
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


def test_a_traversal_leaves_the_other_dimensions_alone():
    codes = np.array([[0, 1], [2, 1]], np.float32)
    traversed = traverse(np.array([7, 9], np.float32), codes, 0, np.array([-1.0, 0.0, 2.0]))
    assert traversed.tolist() == [[0, 9], [1, 9], [3, 9]]


def test_samples_are_the_first_of_those_that_metrics_see(source, digits):
    figure = FIGURES["samples"].draw(source, side=3)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["test images", "VAE", "WAE-IMQ"]
    run = source.runs_to_draw()["vae"]
    codec = source.codec("vae", run)
    sampled = codec.sample(len(digits.test_images), derive_seed(run.record.key, "samples"))
    difference = pictures(figure.axes[1]).astype(int) - mosaic(sampled[:9], 3)
    assert np.abs(difference).max() <= 1


def test_fig_4_draws_codes_of_two_dimensions_as_they_are(source, digits):
    panel = FIGURES["4"].draw(source).axes[0]
    drawn = np.concatenate([c.get_offsets() for c in panel.collections])
    codes = source.codes(source.runs_to_draw()["vae"])
    order = np.argsort(digits.test_labels.numpy(), kind="stable")
    np.testing.assert_allclose(drawn, codes[order], rtol=1e-6)
    assert panel.get_xlabel() == "code, dimension 1"
    assert {text.get_text() for text in panel.texts} == set("0123456789")


def test_more_dimensions_are_projected_the_same_way_each_time():
    from hgmvae_bench.analysis.figures.latent import project

    codes = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    codes[:20] += 8
    points = project(codes, seed=3)
    assert points.shape == (40, 2)
    np.testing.assert_array_equal(points, project(codes, seed=3))
    # Two far groups stay two groups.
    centre = points[:20].mean(axis=0), points[20:].mean(axis=0)
    reach = max(np.linalg.norm(points[:20] - centre[0], axis=1))
    assert np.linalg.norm(centre[0] - centre[1]) > reach


def test_use_of_components_by_class():
    probabilities = np.array([[0.1, 0.9], [0.3, 0.7], [0.0, 1.0]], np.float32)
    usage = usage_by_class(probabilities, np.array([0, 0, 1]))
    np.testing.assert_allclose(usage, [[0.8, 0.2], [1, 0], [2.6 / 3, 0.4 / 3]], rtol=1e-6)


def test_components_are_drawn_where_a_model_has_them(source, digits, monkeypatch):
    codec = source.codec("vae", source.runs_to_draw()["vae"])
    shares = np.eye(10, dtype=np.float32)[digits.test_labels.numpy()]
    monkeypatch.setattr(type(codec), "component_probabilities", lambda self, images: shares)
    figure = FIGURES["components"].draw(source.select(models=["vae"]))
    panel = figure.axes[0]
    usage = panel.collections[0].get_array().reshape(11, 10)
    assert sorted(usage[:10].argmax(axis=1)) == list(range(10))
    assert usage[:10].max(axis=1).tolist() == [1] * 10
    assert panel.get_title() == "VAE: 10.0 of 10 in use"


def test_representatives_take_turns_among_the_classes():
    labels = torch.tensor([1, 1, 0, 1, 0])
    images = torch.zeros(5, 1, 1, 1, dtype=torch.uint8)
    data = ImageData(images, labels, images, labels)
    assert representatives(data, 4) == [2, 0, 4, 1]
    unlabelled = replace(data, train_labels=None, test_labels=None)
    assert representatives(unlabelled, 9) == [0, 1, 2, 3, 4]
