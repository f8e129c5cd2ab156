"""Models in the plane of rate and distortion."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from hgmvae_bench.analysis.figures import FIGURES, FigureError, FigureSource
from hgmvae_bench.analysis.figures.likelihood import ellipse_axes
from hgmvae_bench.storage.schema import MetricValue

RATES = {"vae": (10.0, 11.0, 12.0), "beta-vae": (5.0, 5.5, 5.0)}


def model_by_cell(source: FigureSource) -> dict[str, str]:
    return {cell.identity: names.model for names, cell in source.cells.items()}


def with_likelihood(source: FigureSource, **fingerprints) -> FigureSource:
    """The source with rates and distortions of every model but SWAE."""

    models = model_by_cell(source)

    def metrics_of(run):
        rates = RATES.get(models[run.record.cell])
        if rates is None or run.record.status != "complete":
            return {"rate": MetricValue(missing="deterministic encoder")}
        rate = rates[run.record.seed]
        fingerprint = {"n_samples": fingerprints.get(run.record.key, 4)}
        return {
            name: MetricValue(value=value, fingerprint=fingerprint)
            for name, value in (("rate", rate), ("distortion", 90 - 2 * rate))
        }

    runs = {key: replace(run, metrics=metrics_of(run)) for key, run in source.runs.items()}
    return replace(source, runs=runs)


@pytest.fixture
def source(made_up):
    return with_likelihood(made_up([("vae", 4, 0)]))


def test_a_model_stands_at_its_means(source, lines):
    figure = FIGURES["rate-distortion"].draw(source)
    assert [panel.get_title() for panel in figure.axes] == ["L = 2", "L = 4", "L = 8"]
    by_label = lines(figure.axes[0])
    np.testing.assert_allclose(by_label["β-VAE"].get_xydata(), [[15.5 / 3, 90 - 31 / 3]])
    # A diverged seed has no point.
    (vae,) = (line for label, line in lines(figure.axes[1]).items() if "name" in label)
    np.testing.assert_allclose(vae.get_xydata(), [[11.5, 67]])


def test_models_without_a_likelihood_are_named(source):
    figure = FIGURES["rate-distortion"].draw(source)
    assert "without a likelihood: SWAE" in figure.get_suptitle()


def test_ellipses_need_three_seeds(source):
    figure = FIGURES["rate-distortion"].draw(source)
    counts = [sum(isinstance(patch, Ellipse) for patch in panel.patches) for panel in figure.axes]
    assert counts == [2, 1, 2]


def test_ellipse_is_one_standard_deviation_along_principal_axes():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(100_000, 2)) * [3, 0.5]
    angle = np.radians(30)
    rotation = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    major, minor, degrees = ellipse_axes(spread @ rotation)
    assert (major, minor) == pytest.approx((6, 1), rel=0.02)
    assert degrees % 180 == pytest.approx(30, abs=1)


def test_ellipses_fit_into_their_panel(source):
    for panel in FIGURES["rate-distortion"].draw(source).axes:
        low, high = zip(panel.get_xlim(), panel.get_ylim(), strict=True)
        for ellipse in panel.patches:
            corners = ellipse.get_transform().transform_path(ellipse.get_path()).vertices
            inside = panel.transData.inverted().transform(corners)
            assert (inside > low).all()
            assert (inside < high).all()


def test_equal_seeds_have_an_ellipse_without_extent():
    assert ellipse_axes(np.ones((3, 2)))[:2] == (0, 0)


def test_the_negative_elbo_is_constant_along_dotted_lines(source):
    panel = FIGURES["rate-distortion"].draw(source).axes[0]
    dotted = [line for line in panel.get_lines() if line.get_linestyle() == ":"]
    bounds = [float(text.get_text()) for text in panel.texts]
    assert len(dotted) == len(bounds) > 2
    for line, bound in zip(dotted, bounds, strict=True):
        np.testing.assert_allclose(line.get_xydata().sum(axis=1), bound)


def test_the_same_results_give_the_same_files(source, assert_deterministic_files):
    assert_deterministic_files(lambda: FIGURES["rate-distortion"].draw(source))


def test_a_single_seed_has_a_marker_and_no_ellipse(made_up):
    one_seed = with_likelihood(
        made_up([(model, dim, seed) for model in RATES for dim in (2, 4, 8) for seed in (1, 2)])
    )
    figure = FIGURES["rate-distortion"].draw(one_seed)
    assert not any(panel.patches for panel in figure.axes)
    assert "over 1 seed;" in figure.get_suptitle()


def test_results_without_both_metrics_are_refused(made_up):
    with pytest.raises(FigureError, match=r"rate and distortion.*evaluate --metrics"):
        FIGURES["rate-distortion"].draw(made_up())


def test_values_of_different_fingerprints_are_refused(made_up):
    source = made_up()
    models = model_by_cell(source)
    key = next(key for key, run in source.runs.items() if models[run.record.cell] == "vae")
    with pytest.raises(FigureError, match=r"rate on digits: not comparable: .* differ in"):
        FIGURES["rate-distortion"].draw(with_likelihood(source, **{key: 8}))
