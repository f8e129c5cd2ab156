"""Distances of distributions: values by hand, and parity with torch-fidelity."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from scipy.linalg import sqrtm
from torch import Tensor
from torch.utils.data import Dataset

from hgmvae_bench.evaluation.metrics import classifier, distribution, features
from hgmvae_bench.evaluation.metrics.classifier import EXTRACTOR_NAME, trained_classifier
from hgmvae_bench.evaluation.metrics.distribution import (
    FID,
    FID_CLASSIFIER,
    FID_CLASSIFIER_SAMPLES,
    FID_SAMPLES,
    KID,
    KID_SAMPLES,
    PRECISION,
    RECALL,
    fid,
    fidelity_options,
    kid,
    precision,
    precision_and_recall,
    recall,
)
from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError

RNG = np.random.default_rng(0)


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> Tensor:
    """Features with exactly this sample mean and covariance."""
    noise = RNG.normal(size=(count, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


class TestFid:
    def test_of_gaussians(self) -> None:
        means = RNG.normal(size=(2, 6))
        roots = RNG.normal(size=(2, 6, 6))
        covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(6)
        shift = ((means[0] - means[1]) ** 2).sum()
        root = sqrtm(covariances[0] @ covariances[1]).real
        expected = shift + np.trace(covariances[0] + covariances[1] - 2 * root)
        value = fid(*map(with_moments, means, covariances))
        assert value == pytest.approx(expected, rel=1e-9)

    def test_of_independent_dimensions(self) -> None:
        deviations = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]])
        sets = [with_moments(np.zeros(3), np.diag(d**2)) for d in deviations]
        assert fid(*sets) == pytest.approx(((deviations[0] - deviations[1]) ** 2).sum())

    def test_equal_shifted_and_constant_sets(self) -> None:
        noise = torch.from_numpy(RNG.normal(size=(400, 5)))
        assert fid(noise, noise) == pytest.approx(0, abs=1e-9)
        assert fid(noise, noise + 3) == pytest.approx(5 * 9)
        # For a single point: the squared distance of the means plus the other set's variance.
        point = torch.zeros(400, 5)
        assert fid(point, noise) == pytest.approx(
            float(noise.mean(0).square().sum() + noise.var(0).sum())
        )

    def test_is_never_negative(self) -> None:
        few = torch.from_numpy(RNG.normal(size=(8, 40)))
        assert fid(few, few) >= 0

    def test_order_of_images_does_not_matter(self) -> None:
        sets = torch.from_numpy(RNG.normal(size=(2, 300, 8))).float() + 100
        reordered = sets[:, torch.randperm(300)]
        assert fid(*reordered) == pytest.approx(fid(*sets), rel=1e-9)


class TestKid:
    @pytest.fixture(autouse=True)
    def _few_subsets(self, monkeypatch) -> None:
        monkeypatch.setattr(distribution, "KID_SUBSETS", 5)

    def test_equals_the_formula_on_one_subset(self) -> None:
        """With 1,000 images, every subset is the whole set."""
        x, y = torch.from_numpy(RNG.normal(size=(2, 1000, 3))) * torch.tensor(1.5)
        inner = (x @ x.T / 3 + 1) ** 3, (y @ y.T / 3 + 1) ** 3
        within = sum(float(k.sum() - k.trace()) / (1000 * 999) for k in inner)
        across = float(((x @ y.T / 3 + 1) ** 3).mean())
        assert kid(x, y) == pytest.approx(within - 2 * across, rel=1e-6, abs=1e-9)

    def test_equal_and_shifted_sets(self) -> None:
        x = torch.from_numpy(RNG.normal(size=(3000, 4)))
        assert kid(x[:1500], x[1500:]) == pytest.approx(0, abs=0.02)
        assert kid(x[:1500] + 1, x[1500:]) > 1

    def test_too_few_images_are_refused(self, digits, make_outputs) -> None:
        for metric in (KID, KID_SAMPLES):
            with pytest.raises(MetricMissingError, match=r"1,000 test images.* 360"):
                metric.compute(make_outputs(images=digits.test_images))


class TestPrecisionAndRecall:
    def test_equals_the_definition(self) -> None:
        found = torch.from_numpy(RNG.normal(size=(40, 2)))
        real = torch.from_numpy(RNG.normal(size=(50, 2))) + 1

        def share_within(points: Tensor, centres: Tensor) -> float:
            inside = 0
            for point in points:
                for centre in centres:
                    # Index 0 is the centre itself, so index 3 is its third neighbour.
                    radius = (centres - centre).norm(dim=1).sort().values[3]
                    if (point - centre).norm() <= radius:
                        inside += 1
                        break
            return inside / len(points)

        assert precision(found, real) == pytest.approx(share_within(found, real))
        assert recall(found, real) == pytest.approx(share_within(real, found))

    def test_equal_distant_and_missing_modes(self) -> None:
        real = torch.from_numpy(RNG.normal(size=(200, 3)))
        assert precision_and_recall(real, real) == (1, 1)
        assert precision_and_recall(real + 100, real) == (0, 0)
        # One mode of two: every sample is real, and half of the real images are covered.
        modes = torch.cat([real, real + 100])
        assert precision_and_recall(real.repeat(2, 1), modes) == (1, 0.5)

    def test_chunk_size_does_not_matter(self, monkeypatch) -> None:
        found, real = torch.from_numpy(RNG.normal(size=(2, 120, 3)))
        values = precision_and_recall(found, real)
        monkeypatch.setattr(distribution, "DISTANCE_CHUNK", 7)
        assert precision_and_recall(found.clone(), real) == values


def test_options_unknown_to_torch_fidelity_are_refused() -> None:
    with pytest.raises(TypeError, match="kid_subset_sizes"):
        fidelity_options(kid_subset_sizes=3)


class Images(Dataset[Tensor]):
    """Images as a dataset for ``torch_fidelity.calculate_metrics``."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def trained_cache(digits, tmp_path_factory):
    """Cache folder with a classifier of digits after little training."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 30)
        trained_classifier(digits, "given", cache, torch.device("cpu"))
    return cache


@pytest.fixture
def classified(digits, trained_cache, tmp_path, make_outputs) -> RunOutputs:
    """Digits with blurred copies as reconstructions, and training images as samples."""
    images = digits.test_images
    blurred = torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)
    return make_outputs(
        images=images,
        labels=digits.test_labels,
        train_images=digits.train_images,
        train_labels=digits.train_labels,
        reconstructions=blurred,
        samples=digits.train_images[: len(images)],
        cache=shutil.copytree(trained_cache, tmp_path / "copy"),
    )


class TestOnClassifierFeatures:
    def test_equals_torch_fidelity(self, classified) -> None:
        weights, _ = trained_classifier(
            classified.data, classified.dataset, classified.cache, classified.device
        )
        expected = torch_fidelity.calculate_metrics(
            input1=Images(classified.samples),
            input2=Images(classified.test_images),
            feature_extractor=EXTRACTOR_NAME,
            feature_extractor_weights_path=weights,
            fid=True,
            prc=True,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
        for metric, name in (
            (FID_CLASSIFIER_SAMPLES, "frechet_inception_distance"),
            (replace(PRECISION, extractor="classifier"), "precision"),
            (replace(RECALL, extractor="classifier"), "recall"),
        ):
            assert metric.compute(classified) == pytest.approx(expected[name], rel=1e-3)

    def test_worse_images_are_farther(self, classified, digits) -> None:
        assert FID_CLASSIFIER.compute(classified) > 0
        perfect = replace(classified, codec=replace(classified.codec))
        perfect.codec.reconstructions = digits.test_images
        assert FID_CLASSIFIER.compute(perfect) == pytest.approx(0, abs=1e-6)
        noise = replace(classified, codec=replace(classified.codec))
        noise.codec.samples = torch.randint_like(digits.test_images, 256)
        assert FID_CLASSIFIER_SAMPLES.compute(noise) > FID_CLASSIFIER_SAMPLES.compute(classified)

    def test_batch_size_and_order_do_not_matter(self, classified, monkeypatch) -> None:
        value = FID_CLASSIFIER.compute(classified)
        monkeypatch.setattr(features, "BATCH_SIZE", 7)
        order = torch.randperm(len(classified.test_images))
        reordered = replace(classified, codec=replace(classified.codec))
        reordered.codec.reconstructions = classified.reconstructions[order]
        assert FID_CLASSIFIER.compute(reordered) == pytest.approx(value, rel=1e-4)

    def test_kid_of_inverted_images_is_positive(self, classified, monkeypatch) -> None:
        monkeypatch.setattr(distribution, "KID_SUBSETS", 5)
        monkeypatch.setattr(distribution, "KID_SUBSET_SIZE", 300)
        classified.codec.samples = 255 - classified.test_images
        metric = replace(KID_SAMPLES, extractor="classifier", min_images=300)
        assert metric.compute(classified) > 0

    def test_dataset_without_classes_is_refused(self, digits, make_outputs) -> None:
        outputs = make_outputs(images=digits.test_images, train_images=digits.train_images)
        for use in (FID_CLASSIFIER.compute, FID_CLASSIFIER.fingerprint):
            with pytest.raises(MetricMissingError, match="no classes"):
                use(outputs)

    def test_model_without_prior_is_refused(self, classified) -> None:
        classified.codec.samples = None
        with pytest.raises(MetricMissingError, match="no prior"):
            FID_CLASSIFIER_SAMPLES.compute(classified)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_gpu_agrees_with_the_cpu(self, classified) -> None:
        on_cpu = FID_CLASSIFIER.compute(classified)
        # The cached classifier is kept; the features that the CPU computed are not.
        for file in (classified.cache / "features").iterdir():
            file.unlink()
        on_gpu = FID_CLASSIFIER.compute(replace(classified, device=torch.device("cuda")))
        assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


class TestCachedFeatures:
    @staticmethod
    def extractor(calls: list[int]) -> features.FeatureExtractor:
        class Counting(torch.nn.Module):
            def forward(self, images: Tensor) -> tuple[Tensor]:
                calls.append(len(images))
                return (images.flatten(1).float(),)

        return features.FeatureExtractor("pixels", {}, Counting(), None, torch.device("cpu"))

    def test_are_computed_once_per_extractor_and_images(self, digits, tmp_path) -> None:
        """torch-fidelity's own cache ignores the images."""
        calls: list[int] = []
        extract = self.extractor(calls)
        images = digits.test_images[:20]
        first = features.cached_features(extract, images, tmp_path)
        assert torch.equal(features.cached_features(extract, images, tmp_path), first)
        assert calls == [20]
        changed = images.clone()
        changed[3, 0, 0, 0] += 1
        assert not torch.equal(features.cached_features(extract, changed, tmp_path), first)
        other = replace(extract, identity="other pixels")
        features.cached_features(other, images, tmp_path)
        assert calls == [20, 20, 20]

    def test_damaged_or_unwritable_cache_does_not_matter(self, digits, tmp_path) -> None:
        calls: list[int] = []
        extract = self.extractor(calls)
        images = digits.test_images[:5]
        expected = features.cached_features(extract, images, tmp_path)
        (file,) = tmp_path.iterdir()
        file.write_bytes(b"truncated")
        assert torch.equal(features.cached_features(extract, images, tmp_path), expected)
        assert torch.equal(features.cached_features(extract, images, file / "no folder"), expected)
        assert calls == [5, 5, 5]


class TestOnInception:
    def test_grey_images_are_repeated(self, inception_folder, digits, make_outputs) -> None:
        images = digits.test_images[:3]
        outputs = make_outputs(images=images, reconstructions=images, weights=inception_folder)
        before = torch.random.get_rng_state()
        found = features.image_features(outputs, "inception", "reconstructions")
        assert found.shape == (3, 2048)
        colour = images.repeat(1, 3, 1, 1)
        (expected,) = features.inception_extractor(inception_folder, outputs.device).module(colour)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(features.image_features(outputs, "inception", "test images"), found)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_fingerprints_state_weights_and_images(
        self, inception_folder, digits, make_outputs
    ) -> None:
        outputs = make_outputs(
            images=digits.test_images[:5],
            reconstructions=digits.test_images[:5],
            samples=digits.train_images[:5],
            weights=inception_folder,
        )
        assert 0 <= PRECISION.compute(outputs) <= 1
        assert 0 <= RECALL.compute(outputs) <= 1
        fingerprint = FID.fingerprint(outputs)
        assert fingerprint["weights"] == f"sha256 {features.INCEPTION_SHA256}"
        assert fingerprint["images"] == "reconstructions"
        assert FID_SAMPLES.fingerprint(outputs)["images"] == "prior samples"

    def test_kid_equals_torch_fidelity(
        self, inception_folder, digits, make_outputs, monkeypatch
    ) -> None:
        """Parity of FID is shown on the classifier's features; 2,048 dims take half a minute."""
        monkeypatch.setattr(distribution, "KID_SUBSETS", 3)
        monkeypatch.setattr(distribution, "KID_SUBSET_SIZE", 4)
        images, others = digits.test_images[:6], digits.test_images[6:12]
        outputs = make_outputs(images=images, reconstructions=others, weights=inception_folder)
        expected = torch_fidelity.calculate_metrics(
            input1=Images(others.repeat(1, 3, 1, 1)),
            input2=Images(images.repeat(1, 3, 1, 1)),
            feature_extractor_weights_path=inception_folder
            / "weights-inception-2015-12-05-6726825d.pth",
            kid=True,
            kid_subsets=3,
            kid_subset_size=4,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
        assert replace(KID, min_images=4).compute(outputs) == pytest.approx(
            expected["kernel_inception_distance_mean"], rel=1e-3
        )

    def test_missing_weights_are_named(self, digits, make_outputs) -> None:
        images = digits.test_images[:5]
        for metric in (FID, FID_SAMPLES, PRECISION, RECALL):
            with pytest.raises(MetricMissingError, match=r"inception-2015-12-05-6726825d\.pth"):
                metric.compute(make_outputs(images=images, reconstructions=images, samples=images))
