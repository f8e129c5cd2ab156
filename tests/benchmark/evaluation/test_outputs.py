"""Outputs of a model: deterministic, rounded to 8 bits, and checked for finite values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import to_uint8, to_unit
from hgmvae_bench.evaluation import outputs as outputs_module
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.utils.seeding import derive_seed


class Decoder(nn.Module):
    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": latent.sigmoid().unflatten(1, (1, 2, 2)).repeat(1, 1, 16, 16)}


class TinyModel(nn.Module):
    """Model whose codes are the means of an image's quarters; dropout reveals training mode."""

    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.decoder = Decoder()

    def latent_code(self, data: Tensor) -> Tensor:
        code: Tensor = self.pool(data)
        return code

    def sample_latent(self, n_samples: int) -> Tensor:
        return torch.randn(n_samples, self.latent_dim)

    def update(self) -> None:
        pass


class WithHooks(TinyModel):
    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        code = self.latent_code(data)
        return code, torch.full_like(code, -2)

    def component_probabilities(self, data: Tensor) -> Tensor:
        return self.latent_code(data).softmax(1)


@pytest.fixture
def make_run(digits: ImageData):
    """Function that builds the outputs of a tiny model on digits."""

    def make(model: TinyModel | None = None, **settings) -> RunOutputs:
        device = torch.device("cpu")
        codec = ModelCodec(model or TinyModel(), device)
        return RunOutputs(
            **{
                "codec": codec,
                "data": digits,
                "dataset": "digits",
                "identity": "run",
                "device": device,
                **settings,
            }
        )

    return make


def test_images_are_rounded_to_8_bits() -> None:
    images = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2])
    assert to_uint8(images).tolist() == [0, 0, 0, 1, 255, 255]
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(grey)), grey)


def test_batch_size_does_not_matter(make_run, monkeypatch) -> None:
    outputs = make_run()
    assert outputs.test_codes.shape == (360, 4)
    assert outputs.train_codes.shape == (1437, 4)
    monkeypatch.setattr(outputs_module, "BATCH_SIZE", 7)
    np.testing.assert_allclose(make_run().test_codes, outputs.test_codes, atol=1e-6)
    assert outputs.reconstructions.shape == outputs.test_images.shape
    assert outputs.reconstructions.dtype == torch.uint8


def test_codes_and_reconstructions_encode_each_test_image_once(make_run) -> None:
    encoded = []

    class Counting(TinyModel):
        def latent_code(self, data: Tensor) -> Tensor:
            encoded.append(len(data))
            return super().latent_code(data)

    outputs = make_run(Counting())
    reconstructions = outputs.reconstructions
    assert outputs.test_codes.shape == (360, 4)
    assert sum(encoded) == 360
    codes = outputs.codec.encode(outputs.test_images)
    assert torch.equal(outputs.codec.decode(torch.from_numpy(codes)), reconstructions)


def test_samples_depend_on_the_identity_only(make_run) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    samples = make_run().samples
    assert torch.equal(torch.random.get_rng_state(), before)
    assert samples.shape == make_run().test_images.shape
    torch.manual_seed(1)
    assert torch.equal(make_run().samples, samples)
    assert not torch.equal(make_run(identity="other run").samples, samples)


def test_kmeans_labels_depend_on_the_identity_only(make_run) -> None:
    labels = make_run().kmeans_labels
    assert len(np.unique(labels)) == 10
    np.random.seed(3)  # noqa: NPY002 (the global state must not matter)
    np.testing.assert_array_equal(make_run().kmeans_labels, labels)


def test_optional_hooks_are_used_if_defined(make_run) -> None:
    outputs = make_run(WithHooks())
    mean, log_var = outputs.posterior
    np.testing.assert_array_equal(mean, outputs.test_codes)
    assert log_var.shape == mean.shape
    assert (log_var == -2).all()
    assert outputs.component_probabilities.shape == (360, 4)
    with pytest.raises(MetricMissingError, match="no Gaussian posterior"):
        make_run().posterior  # noqa: B018
    with pytest.raises(MetricMissingError, match="no components"):
        make_run().component_probabilities  # noqa: B018


def test_codes_that_are_not_finite_are_refused(make_run) -> None:
    class Diverged(TinyModel):
        def latent_code(self, data: Tensor) -> Tensor:
            return super().latent_code(data) / 0 - torch.inf

    with pytest.raises(MetricMissingError, match="codes are not all finite"):
        make_run(Diverged()).test_codes  # noqa: B018


def test_images_that_are_not_finite_are_refused(make_run) -> None:
    class Diverged(TinyModel):
        def sample_latent(self, n_samples: int) -> Tensor:
            return torch.full((n_samples, 4), torch.nan)

    with pytest.raises(MetricMissingError, match="images are not all finite"):
        make_run(Diverged()).samples  # noqa: B018


def test_dataset_without_classes_has_no_labels(make_run, digits) -> None:
    outputs = make_run(data=replace(digits, test_labels=None, train_labels=None))
    for name in ("test_labels", "train_labels", "n_classes", "kmeans_labels"):
        with pytest.raises(MetricMissingError, match="no classes"):
            getattr(outputs, name)


def test_shared_values_are_computed_once_per_run(make_run) -> None:
    outputs, calls = make_run(), []
    for _ in range(2):
        assert outputs.shared("answer", lambda: calls.append(1) or 42) == 42
    assert calls == [1]
    assert make_run().shared("answer", lambda: 43) == 43


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu(make_run) -> None:
    device = torch.device("cuda")
    on_gpu = make_run(codec=ModelCodec(TinyModel().to(device), device), device=device)
    np.testing.assert_allclose(on_gpu.test_codes, make_run().test_codes, atol=1e-5)
    assert on_gpu.reconstructions.device.type == "cpu"


def test_kmeans_labels_are_the_best_of_ten_starts(make_run) -> None:
    outputs = make_run()
    kmeans = KMeans(10, n_init=10, random_state=derive_seed("run", "k-means"))
    np.testing.assert_array_equal(outputs.kmeans_labels, kmeans.fit_predict(outputs.test_codes))


def test_samples_have_a_seed_of_their_own(make_run) -> None:
    outputs = make_run()
    expected = outputs.codec.sample(360, derive_seed("run", "samples"))
    assert torch.equal(outputs.samples, expected)
