"""What a model leaves for the metrics: deterministic, rounded as files, and checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import to_uint8, to_unit
from hgmvae_bench.evaluation import outputs as module
from hgmvae_bench.evaluation.outputs import ModelCodec, RunOutputs
from hgmvae_bench.plugins.protocols import MetricMissingError


class Decoder(nn.Module):
    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": latent.sigmoid().unflatten(1, (1, 2, 2)).repeat(1, 1, 16, 16)}


class TinyModel(nn.Module):
    """Four codes per image, the means of its quarters; dropout shows a forgotten eval mode."""

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
def make(digits: ImageData):
    def make(model: TinyModel | None = None, **others) -> RunOutputs:
        device = torch.device("cpu")
        codec = ModelCodec(model or TinyModel(), device)
        return RunOutputs(
            **{
                "codec": codec,
                "data": digits,
                "dataset": "digits",
                "identity": "run",
                "device": device,
                **others,
            }
        )

    return make


def test_rounding_is_that_of_a_file() -> None:
    images = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2])
    assert to_uint8(images).tolist() == [0, 0, 0, 1, 255, 255]
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(grey)), grey)


def test_codes_are_deterministic_and_of_any_batch_size(make, monkeypatch) -> None:
    outputs = make()
    assert outputs.test_codes.shape == (360, 4)
    assert outputs.train_codes.shape == (1437, 4)
    monkeypatch.setattr(module, "BATCH_SIZE", 7)
    np.testing.assert_allclose(make().test_codes, outputs.test_codes, atol=1e-6)
    assert outputs.reconstructions.shape == outputs.test_images.shape
    assert outputs.reconstructions.dtype == torch.uint8


def test_codes_and_reconstructions_take_one_pass_over_the_test_images(make) -> None:
    encoded = []

    class Counting(TinyModel):
        def latent_code(self, data: Tensor) -> Tensor:
            encoded.append(len(data))
            return super().latent_code(data)

    outputs = make(Counting())
    reconstructions = outputs.reconstructions
    assert outputs.test_codes.shape == (360, 4)
    assert sum(encoded) == 360
    assert torch.equal(outputs.codec.reconstruct(outputs.test_images), reconstructions)


def test_samples_follow_from_the_identity_alone(make) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    samples = make().samples
    assert torch.equal(torch.random.get_rng_state(), before)
    assert samples.shape == make().test_images.shape
    torch.manual_seed(1)
    assert torch.equal(make().samples, samples)
    assert not torch.equal(make(identity="other run").samples, samples)


def test_clusters_follow_from_the_identity_alone(make) -> None:
    labels = make().kmeans_labels
    assert len(np.unique(labels)) == 10
    np.random.seed(3)  # noqa: NPY002 (the global state that must not matter)
    np.testing.assert_array_equal(make().kmeans_labels, labels)


def test_optional_hooks(make) -> None:
    outputs = make(WithHooks())
    mean, log_var = outputs.posterior
    np.testing.assert_array_equal(mean, outputs.test_codes)
    assert log_var.shape == mean.shape
    assert (log_var == -2).all()
    assert outputs.component_probabilities.shape == (360, 4)
    with pytest.raises(MetricMissingError, match="no Gaussian posterior"):
        make().posterior  # noqa: B018
    with pytest.raises(MetricMissingError, match="no components"):
        make().component_probabilities  # noqa: B018


def test_codes_that_are_not_finite(make) -> None:
    class Diverged(TinyModel):
        def latent_code(self, data: Tensor) -> Tensor:
            return super().latent_code(data) / 0 - torch.inf

    with pytest.raises(MetricMissingError, match="codes are not all finite"):
        make(Diverged()).test_codes  # noqa: B018


def test_images_that_are_not_finite(make) -> None:
    class Diverged(TinyModel):
        def sample_latent(self, n_samples: int) -> Tensor:
            return torch.full((n_samples, 4), torch.nan)

    with pytest.raises(MetricMissingError, match="images are not all finite"):
        make(Diverged()).samples  # noqa: B018


def test_no_labels(make, digits) -> None:
    outputs = make(data=replace(digits, test_labels=None, train_labels=None))
    for name in ("test_labels", "train_labels", "n_classes", "kmeans_labels"):
        with pytest.raises(MetricMissingError, match="no classes"):
            getattr(outputs, name)


def test_shared_results_are_computed_once(make) -> None:
    outputs, calls = make(), []
    for _ in range(2):
        assert outputs.shared("answer", lambda: calls.append(1) or 42) == 42
    assert calls == [1]
    assert make().shared("answer", lambda: 43) == 43


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device(make) -> None:
    device = torch.device("cuda")
    on_gpu = make(codec=ModelCodec(TinyModel().to(device), device), device=device)
    np.testing.assert_allclose(on_gpu.test_codes, make().test_codes, atol=1e-5)
    assert on_gpu.reconstructions.device.type == "cpu"
