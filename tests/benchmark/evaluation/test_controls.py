"""Controls: known answers, and the order of their scores on real digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hgmvae_bench.data.pixels import to_unit
from hgmvae_bench.evaluation.controls import (
    Control,
    MeanImage,
    PixelNoise,
    PrincipalComponents,
    RealImages,
    build_controls,
)
from hgmvae_bench.evaluation.metrics import classifier
from hgmvae_bench.evaluation.outputs import Codec
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.plugins.registry import DATASETS, METRICS

METRIC_NAMES = ["sc", "accuracy", "ssim", "fid-classifier", "fid-classifier-samples"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """Cache folder for a classifier of digits after little training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 60)
        yield tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def by_name(digits, cache) -> dict[str, Control]:
    """Every control of digits, with the latent dims 2 and 16 for PCA."""
    device = torch.device("cpu")
    return {
        f"{control.name} {control.latent_dim or ''}".strip(): control
        for control in build_controls(digits, "digits", [2, 16], device=device, cache=cache)
    }


def reconstruct(codec: Codec, images: Tensor) -> Tensor:
    """Decode the codes of images."""
    return codec.decode(torch.from_numpy(codec.encode(images)))


def test_every_control_has_a_name_and_an_identity_of_its_own(by_name) -> None:
    assert list(by_name) == [
        "real-halves",
        "real-train",
        "mean-image",
        "pixel-noise",
        "pca 2",
        "pca 16",
    ]
    assert len({control.outputs.identity for control in by_name.values()}) == len(by_name)


def test_scores_are_ordered_by_quality(by_name) -> None:
    scores = {name: control.score(METRIC_NAMES) for name, control in by_name.items()}
    assert {name: list(values) for name, values in scores.items()} == {
        "real-halves": ["fid-classifier-samples"],
        "real-train": ["fid-classifier-samples"],
        "mean-image": ["ssim", "fid-classifier", "fid-classifier-samples"],
        "pixel-noise": ["ssim", "fid-classifier", "fid-classifier-samples"],
        "pca 2": METRIC_NAMES,
        "pca 16": METRIC_NAMES,
    }

    def values(metric: str) -> dict[str, float]:
        scored = {name: s[metric].value for name, s in scores.items() if metric in s}
        return {name: value for name, value in scored.items() if value is not None}

    reconstructions, samples = values("fid-classifier"), values("fid-classifier-samples")
    assert reconstructions["pca 16"] < reconstructions["pca 2"] < reconstructions["mean-image"]
    real = samples.pop("real-train"), samples.pop("real-halves")
    assert max(real) < min(samples.values())
    ssim = values("ssim")
    assert ssim["pixel-noise"] < ssim["mean-image"] < ssim["pca 2"] < ssim["pca 16"]
    assert values("accuracy")["pca 16"] > values("accuracy")["pca 2"] > 0.2


def test_only_the_halves_use_other_images_than_the_models(by_name) -> None:
    fingerprints = {
        name: METRICS["fid-classifier-samples"].fingerprint(control.outputs)
        for name, control in by_name.items()
    }
    assert fingerprints.pop("real-halves")["n_images"] == 180
    assert all(print_ == fingerprints["pca 2"] for print_ in fingerprints.values())
    assert fingerprints["pca 2"]["n_images"] == 360


def test_samples_are_reproducible(by_name, digits, cache) -> None:
    again = build_controls(digits, "digits", [2, 16], device=torch.device("cpu"), cache=cache)
    for first, second in zip(by_name.values(), again, strict=True):
        assert first.outputs.identity == second.outputs.identity
        assert torch.equal(first.outputs.samples, second.outputs.samples)


def test_halves_partition_the_test_images(digits, by_name) -> None:
    outputs = by_name["real-halves"].outputs
    assert len(outputs.test_images) == len(outputs.samples) == 180
    halves = torch.cat([outputs.test_images, outputs.samples]).flatten(1).tolist()
    assert sorted(halves) == sorted(digits.test_images.flatten(1).tolist())


def test_real_images_are_drawn_without_replacement(digits) -> None:
    real = RealImages(digits.test_images)
    assert sorted(real.sample(360, 0).flatten(1).tolist()) == sorted(
        digits.test_images.flatten(1).tolist()
    )
    with pytest.raises(MetricMissingError, match=r"360 images.* 361"):
        real.sample(361, 0)
    assert real.encode(digits.test_images).shape == (360, 0)
    with pytest.raises(MetricMissingError, match="no reconstructions"):
        reconstruct(real, digits.test_images)


def test_mean_image_is_the_mean_of_the_training_images(digits) -> None:
    mean = MeanImage(digits.train_images)
    expected = digits.train_images.double().mean(0).round().to(torch.uint8)
    assert torch.equal(reconstruct(mean, digits.test_images)[7], expected)
    assert torch.equal(mean.sample(3, 0)[2], expected)


def test_controls_without_codes_still_have_reconstructions(by_name) -> None:
    outputs = by_name["mean-image"].outputs
    assert outputs.reconstructions.shape == outputs.test_images.shape
    for name in ("test_codes", "train_codes"):
        with pytest.raises(MetricMissingError, match="no codes"):
            getattr(outputs, name)


def test_only_pca_has_codes_for_the_metrics_of_disentanglement(by_name) -> None:
    scored = [name for name, each in by_name.items() if set(METRICS["mig"].needs) <= each.provides]
    assert scored == ["pca 2", "pca 16"]


def test_pixel_noise_is_uniform() -> None:
    noise = PixelNoise((3, 16, 16), seed=1).sample(200, 0).double()
    assert noise.shape == (200, 3, 16, 16)
    assert float(noise.mean()) == pytest.approx(127.5, abs=1)
    assert float(noise.std()) == pytest.approx(np.sqrt((256**2 - 1) / 12), abs=1)


class TestPca:
    def test_is_the_best_linear_code(self, digits) -> None:
        pca = PrincipalComponents(digits.train_images, 64, seed=0)  # the rank of 8×8 images
        error = to_unit(reconstruct(pca, digits.train_images)) - to_unit(digits.train_images)
        assert float(error.abs().max()) < 0.005
        images = to_unit(digits.test_images)
        errors = []
        for dims in (1, 4, 16):
            pca = PrincipalComponents(digits.train_images, dims, seed=0)
            error = to_unit(reconstruct(pca, digits.test_images)) - images
            errors.append(float(error.square().mean()))
        assert errors == sorted(errors, reverse=True)

    def test_samples_have_the_moments_of_the_codes(self, digits) -> None:
        pca = PrincipalComponents(digits.train_images, 4, seed=0)
        codes = pca.encode(digits.train_images)
        np.testing.assert_allclose(codes.mean(axis=0), 0, atol=1e-4)
        deviations = pca.fitted[2]
        np.testing.assert_allclose(codes.std(axis=0, ddof=1), deviations, rtol=1e-4)
        covariance = np.cov(codes, rowvar=False)
        np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-2)
        assert not torch.equal(pca.sample(5, 0), pca.sample(5, 1))

    def test_more_components_than_images_are_refused(self, digits) -> None:
        pca = PrincipalComponents(digits.train_images[:10], 11, seed=0)
        with pytest.raises(MetricMissingError, match="no 11 components"):
            pca.encode(digits.test_images)

    def test_approximations_for_large_data_are_close(self, digits, monkeypatch) -> None:
        from hgmvae_bench.evaluation import controls as module

        exact = PrincipalComponents(digits.train_images, 3, 0).encode(digits.test_images)
        monkeypatch.setattr(module, "MAX_PCA_PIXELS", 1000 * 32 * 32)
        monkeypatch.setattr(module, "MAX_EXACT_PIXELS", 100)
        close = PrincipalComponents(digits.train_images, 3, 0).encode(digits.test_images)
        correlation = np.corrcoef(exact.T, close.T)[:3, 3:]
        assert (np.abs(np.diag(correlation)) > 0.95).all()


@pytest.mark.shared_data
@pytest.mark.slow
def test_pca_of_mnist(real_data) -> None:
    """The values in docs/results/metrics.md."""
    data = DATASETS["mnist"].load(real_data, image_size=32)
    (*_, pca) = build_controls(data, "mnist", [8], device=torch.device("cpu"))
    scores = pca.score(["sc", "ch", "db"])
    found = {name: score.value for name, score in scores.items()}
    assert found == pytest.approx({"sc": 0.1087, "ch": 871.7, "db": 2.477}, rel=1e-3)
