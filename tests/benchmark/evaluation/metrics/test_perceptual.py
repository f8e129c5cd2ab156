"""LPIPS on random weights in the published file format."""

from __future__ import annotations

import io
import warnings

import lpips
import pytest
import torch

from hgmvae_bench.evaluation.metrics import perceptual
from hgmvae_bench.evaluation.metrics.perceptual import LPIPS
from hgmvae_bench.plugins.protocols import MetricMissingError


@pytest.fixture
def images(digits):
    return {"images": digits.test_images[:12], "reconstructions": digits.test_images[12:24]}


@pytest.fixture
def reference_network(alexnet_bytes):
    """Network of the lpips package with the same AlexNet weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    features = torch.load(io.BytesIO(alexnet_bytes), weights_only=True)
    for name, parameter in network.net.named_parameters():
        parameter.data = features[f"features.{name.split('.', 1)[1]}"]
    return network


def test_equals_the_lpips_package(reference_network, images, alexnet_folder, make_outputs) -> None:
    value = LPIPS.compute(make_outputs(**images, weights=alexnet_folder))
    colours = [batch.repeat(1, 3, 1, 1) / 127.5 - 1 for batch in images.values()]
    with torch.inference_mode():
        expected = reference_network(*colours).mean()
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert value > 0


def test_channels_order_and_batch_size_do_not_matter(
    images, alexnet_folder, make_outputs, monkeypatch
) -> None:
    def value(**changes):
        return LPIPS.compute(make_outputs(**{**images, **changes}, weights=alexnet_folder))

    assert value(reconstructions=images["images"]) == 0
    grey = value()
    colour = {name: batch.repeat(1, 3, 1, 1) for name, batch in images.items()}
    assert value(**colour) == pytest.approx(grey, rel=1e-6)
    monkeypatch.setattr(perceptual, "BATCH_SIZE", 5)
    backwards = {name: batch.flip(0) for name, batch in images.items()}
    assert value(**backwards) == pytest.approx(grey, rel=1e-5)


def test_leaves_the_global_generator_alone(images, alexnet_folder, make_outputs) -> None:
    before = torch.random.get_rng_state()
    LPIPS.compute(make_outputs(**images, weights=alexnet_folder))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("side", "is_enough"), [(30, False), (31, True)])
def test_images_below_the_minimum_side_are_refused(
    side, is_enough, alexnet_folder, make_outputs
) -> None:
    blank = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    outputs = make_outputs(images=blank, reconstructions=blank, weights=alexnet_folder)
    if is_enough:
        assert LPIPS.compute(outputs) == 0
    else:
        with pytest.raises(MetricMissingError, match=r"31 px.* 30"):
            LPIPS.compute(outputs)


def test_missing_weights_are_named(images, make_outputs) -> None:
    with pytest.raises(MetricMissingError, match=r"alexnet-owt-7be5be79\.pth"):
        LPIPS.compute(make_outputs(**images))


def test_changed_linear_weights_are_refused(
    images, alexnet_folder, make_outputs, monkeypatch
) -> None:
    monkeypatch.setattr(perceptual, "LINEAR_SHA256", "0" * 64)
    with pytest.raises(MetricMissingError, match="reinstall lpips"):
        LPIPS.compute(make_outputs(**images, weights=alexnet_folder))


def test_files_are_unpickled_with_restrictions(
    images, alexnet_folder, make_outputs, monkeypatch
) -> None:
    load, calls = torch.load, []

    def recorded(*arguments, **options):
        calls.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", recorded)
    LPIPS.compute(make_outputs(**images, weights=alexnet_folder))
    assert [call["weights_only"] for call in calls] == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu(images, alexnet_folder, make_outputs) -> None:
    values = [
        LPIPS.compute(make_outputs(**images, weights=alexnet_folder, device=torch.device(device)))
        for device in ("cpu", "cuda")
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-2)
