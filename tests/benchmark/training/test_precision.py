from unittest.mock import Mock

import pytest
import torch

from hgmvae_bench.evaluation import scoring
from hgmvae_bench.grid import load_grid
from hgmvae_bench.training import precision
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.training.precision import PrecisionError, autocast_networks, check_precision, tf32

CPU = torch.device("cpu")


class TwoPartModel:
    def __init__(self):
        network = Network((1, 32, 32), width=4)
        self.encoder, self.decoder = network.gaussian_encoder(3), network.decoder(3)

    def __call__(self, x):
        encoded = self.encoder(x)
        return encoded.embedding, self.decoder(encoded.embedding)["reconstruction"]


def test_float32_is_always_supported_and_changes_nothing():
    check_precision("float32", CPU)
    model, x = TwoPartModel(), torch.rand(4, 1, 32, 32)
    code, images = model(x)
    with autocast_networks("float32", model):
        again = model(x)
    assert torch.equal(again[0], code)
    assert torch.equal(again[1], images)


def test_bf16_networks_return_float32_tensors_with_bf16_accuracy():
    torch.manual_seed(0)
    model, x = TwoPartModel(), torch.rand(16, 1, 32, 32)
    _, images = model(x)
    with autocast_networks("bf16", model):
        bf16_code, bf16_images = model(x)
        bf16_images.sum().backward()
    assert bf16_code.dtype == bf16_images.dtype == torch.float32
    gradients = [p.grad for p in [*model.encoder.parameters(), *model.decoder.parameters()]]
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 20
    # bf16 has eight bits of mantissa.
    error = (bf16_images - images).norm() / images.norm()
    assert 1e-5 < error < 3e-2
    assert "forward" not in vars(model.encoder)
    model.encoder.eval(), model.decoder.eval()
    assert torch.equal(model(x)[1], model(x)[1])


def test_an_unsupported_precision_raises_an_error_with_advice(monkeypatch):
    with pytest.raises(PrecisionError, match=r"tf32.*cpu.*NVIDIA.*float32"):
        check_precision("tf32", CPU)
    monkeypatch.setattr(precision, "supports_bf16", lambda _device: False)
    with pytest.raises(PrecisionError, match=r"bf16.*cpu.*emulated"):
        check_precision("bf16", CPU)


def test_tf32_is_set_within_the_block_and_restored_after_it():
    before = torch.backends.cudnn.allow_tf32
    with tf32(enabled=False):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    with tf32(enabled=True):
        assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_metrics_are_computed_without_tf32(monkeypatch):
    class Allowed:
        def compute(self, outputs):
            return float(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)

        def fingerprint(self, outputs):
            return {}

    monkeypatch.setattr(scoring, "METRICS", {"allowed": Allowed()})
    with tf32(enabled=True):
        values = scoring.score(Mock(), ["allowed"])
        assert torch.backends.cudnn.allow_tf32
    assert values["allowed"].value == 0


def test_precision_is_part_of_the_run_identity():
    grid = load_grid("smoke")
    plain, bf16 = (next(iter(grid.select(precision=p).cells)) for p in (None, "bf16"))
    assert bf16.settings["training"]["precision"] == "bf16"
    assert plain.settings["training"]["precision"] == "float32"
    assert plain.identity != bf16.identity
