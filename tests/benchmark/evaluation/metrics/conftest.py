"""Outputs with given codes and images, and pretrained weights without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from hgmvae_bench.data import ImageData
from hgmvae_bench.evaluation.metrics import features, perceptual, weights
from hgmvae_bench.evaluation.outputs import Codec, RunOutputs
from hgmvae_bench.plugins.image_data import Codes
from hgmvae_bench.plugins.protocols import MetricMissingError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"


@dataclass
class FakeCodec(Codec):
    """Codec with fixed answers; codes are selected by the number of images."""

    codes: Sequence[Codes]
    reconstructions: Tensor | None = None
    samples: Tensor | None = None

    def encode(self, images: Tensor) -> Codes:
        no_codes = np.empty((len(images), 0), dtype=np.float32)
        return next((codes for codes in self.codes if len(codes) == len(images)), no_codes)

    def decode(self, codes: Tensor) -> Tensor:
        assert self.reconstructions is not None
        return self.reconstructions

    def sample(self, n_samples: int, seed: int) -> Tensor:
        if self.samples is None:
            raise MetricMissingError("there is no prior")
        return self.samples[:n_samples]


MakeOutputs = Callable[..., RunOutputs]


@pytest.fixture
def make_outputs(tmp_path: Path) -> MakeOutputs:
    """Function that builds outputs; images default to blank ones, labels to none."""

    def make(
        codes: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        *,
        train_codes: npt.ArrayLike | None = None,
        train_labels: npt.ArrayLike | None = None,
        images: Tensor | None = None,
        train_images: Tensor | None = None,
        reconstructions: Tensor | None = None,
        samples: Tensor | None = None,
        **settings: Any,
    ) -> RunOutputs:
        arrays = [np.asarray(c, dtype=np.float32) for c in (codes, train_codes) if c is not None]
        if images is None:
            images = torch.zeros(len(arrays[0]), 1, 1, 1, dtype=torch.uint8)
        if train_images is None:
            train_images = torch.zeros(len(arrays[-1]) if arrays else 1, 1, 1, 1).byte()
            train_images = train_images.expand(-1, *images.shape[1:])

        def tensor(values: npt.ArrayLike | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(np.asarray(values, dtype=np.int64))

        defaults = {
            "dataset": "given",
            "identity": "given",
            "device": torch.device("cpu"),
            "cache": tmp_path / "cache",
        }
        return RunOutputs(
            codec=FakeCodec(arrays, reconstructions, samples),
            data=ImageData(train_images, tensor(train_labels), images, tensor(labels)),
            **{**defaults, **settings},
        )

    return make


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of torch.hub, without a network and without cached extractors."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "download", lambda url, target: "no network")
    features.inception_extractor.cache_clear()
    perceptual.alexnet_lpips.cache_clear()
    return tmp_path / "torch" / "hub" / "checkpoints"


def saved(state: object) -> bytes:
    """Bytes of the file that ``torch.save`` writes."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


@pytest.fixture(scope="session")
def inception_bytes() -> bytes:
    """File of random Inception weights in torch-fidelity's format."""

    class Untrained(features.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keep the random parameters."""

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Untrained(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(saved({}))
        )
    return saved(network.state_dict())


@pytest.fixture
def inception_folder(
    inception_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Folder with random Inception weights that pass for the published ones."""
    folder = tmp_path / "inception"
    folder.mkdir()
    (folder / INCEPTION_FILE).write_bytes(inception_bytes)
    expected = hashlib.sha256(inception_bytes).hexdigest()[:8]
    monkeypatch.setattr(features, "INCEPTION_SHA256", expected)
    published = dataclasses.replace(features.INCEPTION_WEIGHTS, sha256=expected)
    monkeypatch.setattr(features, "INCEPTION_WEIGHTS", published)
    return folder


@pytest.fixture(scope="session")
def alexnet_bytes() -> bytes:
    """File of random AlexNet weights in torchvision's format, without the classifier."""
    from torchvision.models import alexnet

    with warnings.catch_warnings(), torch.random.fork_rng():
        torch.manual_seed(0)
        network = alexnet(weights=None)
    return saved({k: v for k, v in network.state_dict().items() if k.startswith("features.")})


@pytest.fixture
def alexnet_folder(alexnet_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with random AlexNet weights that pass for the published ones."""
    folder = tmp_path / "alexnet"
    folder.mkdir()
    (folder / ALEXNET_FILE).write_bytes(alexnet_bytes)
    expected = hashlib.sha256(alexnet_bytes).hexdigest()[:8]
    monkeypatch.setattr(perceptual, "ALEXNET_SHA256", expected)
    return folder
