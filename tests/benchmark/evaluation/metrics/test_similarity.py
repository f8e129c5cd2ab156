"""SSIM and MS-SSIM: parity with other implementations, and known answers."""

from __future__ import annotations

import pytest
import torch
from pytorch_msssim import ms_ssim as pytorch_ms_ssim
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import interpolate

from hgmvae_bench.evaluation.metrics import similarity
from hgmvae_bench.evaluation.metrics.similarity import (
    MS_SSIM,
    MS_SSIM_BILINEAR,
    SSIM,
    ms_ssim,
    ms_ssim_bilinear,
    ssim,
    upsampling_factor,
)
from hgmvae_bench.plugins.protocols import MetricMissingError


def noisy_pair(*shape: int, noise: float = 60) -> tuple[Tensor, Tensor]:
    """Smooth images in [0, 255], and noisy copies."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(*shape[:2], 4, 4, generator=generator) * 255
    images = interpolate(coarse, shape[2:], mode="bilinear").round()
    copies = images + noise * torch.randn(shape, generator=generator)
    return images, copies.clamp(0, 255).round()


@pytest.mark.parametrize("shape", [(4, 1, 32, 32), (2, 3, 40, 28)])
def test_ssim_equals_scikit_image(shape) -> None:
    originals, images = noisy_pair(*shape)
    expected = [
        structural_similarity(
            x.double().numpy(),
            y.double().numpy(),
            data_range=255,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(originals, images, strict=True)
    ]
    assert ssim(originals, images).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 1, 32, 32),  # enlarged 6 times
        (2, 3, 64, 64),  # 3 times: halves that do not fall on pixels
        (3, 1, 28, 28),  # 6 times, with an odd side on the way
        (2, 1, 33, 40),  # 5 times, not square
        (2, 1, 8, 8),  # 21 times
        (1, 3, 161, 170),  # not enlarged
    ],
)
def test_ms_ssim_equals_pytorch_msssim_on_repeated_pixels(shape) -> None:
    originals, images = noisy_pair(*shape)
    factor = upsampling_factor(min(shape[2:]))
    large = (interpolate(x.double(), scale_factor=factor) for x in (originals, images))
    expected = pytorch_ms_ssim(*large, data_range=255, size_average=False)
    torch.testing.assert_close(ms_ssim(originals, images), expected.float(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "shape", [(3, 1, 32, 32), (2, 3, 64, 64), (2, 1, 33, 40), (1, 3, 161, 170)]
)
def test_bilinear_ms_ssim_equals_pytorch_msssim_on_interpolated_images(shape) -> None:
    originals, images = noisy_pair(*shape)
    factor = upsampling_factor(min(shape[2:]))
    large = (
        interpolate(x.double(), scale_factor=factor, mode="bilinear") for x in (originals, images)
    )
    expected = pytorch_ms_ssim(*large, data_range=255, size_average=False).float()
    values = ms_ssim_bilinear(originals, images)
    torch.testing.assert_close(values, expected, atol=2e-6, rtol=0)


def test_bilinear_enlargement_gives_higher_values(digits, make_outputs) -> None:
    images = digits.test_images[:24]
    noise = 40 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + noise).clamp(0, 255).to(torch.uint8)
    outputs = make_outputs(images=images, reconstructions=noisy)
    assert MS_SSIM_BILINEAR.compute(outputs) > MS_SSIM.compute(outputs)


@pytest.mark.parametrize("side", [1, 32, 80, 81, 160, 161, 300])
def test_upsampling_factor_is_the_smallest_sufficient_one(side) -> None:
    factor = upsampling_factor(side)
    assert side * factor > 160
    assert factor == 1 or side * (factor - 1) <= 160


@pytest.mark.parametrize(
    "metric", [SSIM, MS_SSIM, MS_SSIM_BILINEAR], ids=lambda metric: metric.title
)
class TestEveryMetric:
    def test_value_falls_with_noise(self, metric, digits, make_outputs) -> None:
        images = digits.test_images[:20]
        assert metric.compute(make_outputs(images=images, reconstructions=images)) == pytest.approx(
            1
        )
        values = []
        for noise in (10, 40, 160):
            generator = torch.Generator().manual_seed(0)
            noisy = images + noise * torch.randn(images.shape, generator=generator)
            noisy = noisy.clamp(0, 255).to(torch.uint8)
            values.append(metric.compute(make_outputs(images=images, reconstructions=noisy)))
        assert 1 > values[0] > values[1] > values[2] > 0

    def test_batch_size_and_order_do_not_matter(
        self, metric, digits, make_outputs, monkeypatch
    ) -> None:
        images, reconstructions = digits.test_images[:37], digits.test_images[40:77]
        value = metric.compute(make_outputs(images=images, reconstructions=reconstructions))
        monkeypatch.setattr(similarity, "BATCH_SIZE", 5)
        order = torch.randperm(37)
        reordered = make_outputs(images=images[order], reconstructions=reconstructions[order])
        assert metric.compute(reordered) == pytest.approx(value, abs=1e-6)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_gpu_agrees_with_the_cpu(self, metric, digits, make_outputs) -> None:
        images = {"images": digits.test_images[:40], "reconstructions": digits.test_images[40:80]}
        on_cpu = metric.compute(make_outputs(**images))
        on_gpu = metric.compute(make_outputs(**images, device=torch.device("cuda")))
        assert on_gpu == pytest.approx(on_cpu, abs=1e-4)


def test_flat_images_are_similar_to_themselves(make_outputs) -> None:
    flat = torch.full((2, 1, 32, 32), 7, dtype=torch.uint8)
    for metric in (SSIM, MS_SSIM, MS_SSIM_BILINEAR):
        assert metric.compute(make_outputs(images=flat, reconstructions=flat)) == pytest.approx(1)


def test_images_smaller_than_the_window_are_refused(make_outputs) -> None:
    images = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    with pytest.raises(MetricMissingError, match=r"11 px.* 10"):
        SSIM.compute(make_outputs(images=images, reconstructions=images))


def test_fingerprint_states_the_enlargement(digits, make_outputs) -> None:
    outputs = make_outputs(images=digits.test_images[:3])
    assert MS_SSIM.fingerprint(outputs)["resize"] == "nearest ×6"
    assert MS_SSIM_BILINEAR.fingerprint(outputs)["resize"] == "bilinear ×6"
    assert "resize" not in SSIM.fingerprint(outputs)
