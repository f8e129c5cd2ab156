import pytest
import torch

from hgmvae_bench.training.network.encoders import Network, parameter_count


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64])
def test_shapes_and_ranges(channels, side):
    network = Network((channels, side, side), width=4)
    images = torch.rand(2, channels, side, side)
    features = network.feature_encoder()
    assert features(images).embedding.shape == (2, features.feature_dim)
    posterior = network.gaussian_encoder(5)(images)
    assert posterior.embedding.shape == posterior.log_covariance.shape == (2, 5)
    reconstruction = network.decoder(5)(network.point_encoder(5)(images).embedding).reconstruction
    assert reconstruction.shape == images.shape
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 1


def test_the_default_width_has_32_to_512_channels():
    encoder = Network((1, 32, 32)).feature_encoder()
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256, 512]
    assert encoder.feature_dim == 512
    # 3·3·(1·32 + 32·64 + 64·128 + 128·256 + 256·512) weights and 2·992 of batch norm.
    assert parameter_count(encoder.parameters()) == 1_566_720 + 1_984 + 288


def test_an_image_side_that_is_no_multiple_of_32_raises_an_error():
    with pytest.raises(ValueError, match=r"28 px.*multiple of 32"):
        Network((1, 28, 28))
