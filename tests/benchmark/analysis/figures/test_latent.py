"""Test codes by class, and component use by class."""

import numpy as np
import pytest

from hgmvae_bench.analysis.figures import FIGURES
from hgmvae_bench.analysis.figures.latent import usage_by_class
from hgmvae_bench.evaluation.metrics.tsne_clustering import project


def test_fig_4_draws_two_dimensional_codes_unchanged(source, digits):
    panel = FIGURES["4"].draw(source).axes[0]
    drawn = np.concatenate([c.get_offsets() for c in panel.collections])
    codes = source.codes(source.runs_to_draw()["vae"])
    order = np.argsort(digits.test_labels.numpy(), kind="stable")
    np.testing.assert_allclose(drawn, codes[order], rtol=1e-6)
    assert panel.get_xlabel() == "code, dimension 1"
    assert {text.get_text() for text in panel.texts} == set("0123456789")


def test_projection_is_deterministic_and_keeps_groups_apart():
    codes = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    codes[:20] += 8
    points = project(codes, seed=3)
    assert points.shape == (40, 2)
    np.testing.assert_array_equal(points, project(codes, seed=3))
    centres = points[:20].mean(axis=0), points[20:].mean(axis=0)
    radius = max(np.linalg.norm(points[:20] - centres[0], axis=1))
    assert np.linalg.norm(centres[0] - centres[1]) > radius


def test_usage_is_the_mean_probability_by_class():
    probabilities = np.array([[0.1, 0.9], [0.3, 0.7], [0.0, 1.0]], np.float32)
    usage = usage_by_class(probabilities, np.array([0, 0, 1]))
    np.testing.assert_allclose(usage, [[0.8, 0.2], [1, 0], [2.6 / 3, 0.4 / 3]], rtol=1e-6)


@pytest.fixture
def one_component_per_class(source, digits, monkeypatch):
    """A VAE that assigns every image to the component with the number of its class."""
    codec = source.codec("vae", source.runs_to_draw()["vae"])
    one_hot = np.eye(10, dtype=np.float32)[digits.test_labels.numpy()]
    monkeypatch.setattr(type(codec), "component_probabilities", lambda self, images: one_hot)
    return source.select(models=["vae"])


def test_components_are_drawn_for_models_that_have_them(one_component_per_class):
    panel = FIGURES["components"].draw(one_component_per_class).axes[0]
    usage = panel.collections[0].get_array().reshape(11, 10)
    assert sorted(usage[:10].argmax(axis=1)) == list(range(10))
    assert usage[:10].max(axis=1).tolist() == [1] * 10
    assert panel.get_title() == "VAE: 10.0 of 10 in use"


def test_the_same_results_give_the_same_files(one_component_per_class, assert_deterministic_files):
    assert_deterministic_files(lambda: FIGURES["components"].draw(one_component_per_class))
