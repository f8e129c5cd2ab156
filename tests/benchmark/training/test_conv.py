import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hgmvae_bench.training.network import conv
from hgmvae_bench.training.network.conv import Downsampling, Upsampling

SHAPES = [  # batch, channels in and out, side
    (3, 2, 5, 8),
    (2, 1, 4, 16),
    (2, 4, 3, 2),
    (1, 3, 2, 64),
    (4, 6, 7, 4),
    (2, 8, 1, 4),
]


def assert_equal_outputs_and_gradients(fast, plain, x):
    """Compare both layers' outputs and gradients in float64."""
    outcomes = []
    for layer in (fast, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients = torch.autograd.grad((y * weights).sum(), [leaf, *fast.parameters()])
        outcomes.append([y, *gradients])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "c_in", "c_out", "side"), SHAPES)
def test_downsampling_equals_torchs_convolution(n, c_in, c_out, side, bias):
    layer = Downsampling(c_in, c_out, bias=bias).double()
    x = torch.randn(n, c_in, side, 2 * side, dtype=torch.float64)
    assert_equal_outputs_and_gradients(
        layer, lambda x: F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1), x
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "c_in", "c_out", "side"), [*SHAPES, (3, 5, 2, 1), (2, 2, 6, 1)])
def test_upsampling_equals_torchs_transposed_convolution(n, c_in, c_out, side, bias):
    layer = Upsampling(c_in, c_out, bias=bias).double()
    x = torch.randn(n, c_in, side, side, dtype=torch.float64)

    def plain(x):
        return F.conv_transpose2d(
            x, layer.weight, layer.bias, stride=2, padding=1, output_padding=1
        )

    assert_equal_outputs_and_gradients(layer, plain, x)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("side", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [(1, 6), (3, 1), (6, 4)])
def test_both_float32_kernels_agree_with_float64(monkeypatch, onednn, side, channels):
    """oneDNN's kernels and matrix products against torch's layers in float64."""
    monkeypatch.setattr(conv, "USE_ONEDNN", onednn)
    down, up = Downsampling(*channels), Upsampling(*channels)
    exact = [
        nn.Conv2d(*channels, 3, stride=2, padding=1).double(),
        nn.ConvTranspose2d(*channels, 3, stride=2, padding=1, output_padding=1).double(),
    ]
    x = torch.randn(3, channels[0], side, side)
    for layer, reference in zip((down, up), exact, strict=True):
        reference.load_state_dict(layer.state_dict())
        outcomes = []
        for tested, maps in ((layer, x.clone()), (reference, x.double())):
            maps.requires_grad_()
            y = tested(maps)
            weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
            gradients = torch.autograd.grad((y * weights).sum(), [maps, *tested.parameters()])
            outcomes.append([y, *gradients])
        for float32, float64 in zip(*outcomes, strict=True):
            assert (float32.double() - float64).norm() <= 1e-5 * float64.norm()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("onednn", [True, False])
def test_layers_keep_channels_last_memory(monkeypatch, channels, onednn):
    monkeypatch.setattr(conv, "USE_ONEDNN", onednn)
    maps = torch.randn(2, channels, 16, 16)
    for layer in (Downsampling(channels, 4), Downsampling(4, 6), Upsampling(6, 4)):
        maps = layer(maps)
        assert maps.is_contiguous(memory_format=torch.channels_last)


def test_layers_initialise_like_torchs_layers():
    torch.manual_seed(0)
    ours = [Downsampling(3, 4), Upsampling(4, 3)]
    torch.manual_seed(0)
    theirs = [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    ]
    for layer, reference in zip(ours, theirs, strict=True):
        assert layer.state_dict().keys() == reference.state_dict().keys()
        assert all(torch.equal(layer.state_dict()[k], v) for k, v in reference.state_dict().items())


def test_outputs_do_not_depend_on_memory_layout():
    layer = Downsampling(2, 3).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), y)
    gradient = torch.randn_like(y)
    plain, strided = (
        torch.autograd.grad(layer(x), layer.weight, g)[0]
        for g in (gradient, gradient.transpose(2, 3).contiguous().transpose(2, 3))
    )
    torch.testing.assert_close(plain, strided)
