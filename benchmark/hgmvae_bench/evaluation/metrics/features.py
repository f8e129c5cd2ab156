"""Features of images, as the metrics that compare distributions need them.

torch-fidelity's extractors give them, but not through its ``calculate_metrics``: that would extract
all features again for each metric, and its cache of them knows nothing of the images, so that it
answers with the features of other data under the same name.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from hgmvae_bench.evaluation.metrics import classifier
from hgmvae_bench.evaluation.metrics.weights import PretrainedWeights
from hgmvae_bench.plugins.protocols import Outputs

ExtractorName = Literal["inception", "classifier"]
ImageSource = Literal["test images", "reconstructions", "prior samples"]

BATCH_SIZE = 50
INCEPTION = "inception-v3-compat"
INCEPTION_LAYER = "2048"
INCEPTION_SHA256 = "6726825d"


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns images into features, on one device.

    Attributes:
        identity: tells its features from all others', and serves as part of a file's name.
        fingerprint: what a value says of it.
        module: torch-fidelity's, in eval mode.
        channels: 3 if it takes colour images only.
        device: that it computes on.
    """

    identity: str
    fingerprint: Mapping[str, str | int | float]
    module: FeatureExtractorBase
    channels: Literal[3] | None
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D), float32 on the CPU, of uint8 images (N, C, H, W).

        Grey images are given to all three colours of a network that wants them.
        """
        channels = self.channels or images.shape[1]
        features = [
            self.module(batch.to(self.device).expand(-1, channels, -1, -1))[0].cpu()
            for batch in images.split(BATCH_SIZE)
        ]
        return torch.cat(features)


INCEPTION_WEIGHTS = PretrainedWeights(
    "Inception of torch-fidelity", URL_INCEPTION_V3, INCEPTION_SHA256
)


@lru_cache(maxsize=1)
def inception_extractor(folder: Path | None, device: torch.device) -> FeatureExtractor:
    """torch-fidelity's Inception: the network and the weights of the FID's first authors.

    Raises:
        MetricMissingError: if the weights cannot be had, or are not the published ones.
    """
    # torch-fidelity unpickles whatever it is given, so it gets bytes that were written here.
    clean = io.BytesIO()
    torch.save(dict(INCEPTION_WEIGHTS.load(folder)), clean)
    clean.seek(0)
    # It is built with random parameters first, which must not come from the global stream.
    with torch.random.fork_rng(devices=[]):
        module = FeatureExtractorInceptionV3(
            INCEPTION, [INCEPTION_LAYER], feature_extractor_weights_path=clean
        )
    return FeatureExtractor(
        identity=f"{INCEPTION}-{INCEPTION_SHA256}",
        fingerprint={
            "extractor": f"{INCEPTION}, layer {INCEPTION_LAYER}",
            "weights": f"sha256 {INCEPTION_SHA256}",
            "resize": "bilinear to 299, as TensorFlow 1",
        },
        module=module.to(device),
        channels=3,
        device=device,
    )


def classifier_extractor(outputs: Outputs) -> FeatureExtractor:
    """The classifier of the run's dataset, which is trained now if it has not been yet.

    Raises:
        MetricMissingError: if the dataset has fewer than two classes, or the cache is damaged or
            cannot be written.
    """
    path, description = classifier.trained_classifier(
        outputs.data, outputs.dataset, cache_folder(outputs), outputs.device
    )
    fingerprint: dict[str, str | int | float] = {
        "extractor": f"{classifier.EXTRACTOR_NAME} {description.protocol}",
        "weights": f"sha256 {description.weights_sha256[:16]}",
        "n_classifier_images": description.n_train_images,
        "resize": "none",
    }
    if description.test_accuracy is not None:
        fingerprint["classifier_accuracy"] = description.test_accuracy
    make = FEATURE_EXTRACTORS_REGISTRY[classifier.EXTRACTOR_NAME]
    with torch.random.fork_rng(devices=[]):
        module = make(
            classifier.EXTRACTOR_NAME, [classifier.LAYER], feature_extractor_weights_path=path
        )
    return FeatureExtractor(
        identity=f"{classifier.EXTRACTOR_NAME}-{description.weights_sha256[:16]}",
        fingerprint=fingerprint,
        module=module.to(outputs.device).eval(),
        channels=None,
        device=outputs.device,
    )


def find_extractor(outputs: Outputs, name: ExtractorName) -> FeatureExtractor:
    """The extractor of a run by name.

    Raises:
        MetricMissingError: if it cannot be had.
    """
    if name == "inception":
        return inception_extractor(outputs.weights, outputs.device)
    return outputs.shared("classifier", lambda: classifier_extractor(outputs))


def image_features(outputs: Outputs, name: ExtractorName, source: ImageSource) -> Tensor:
    """Features (N, D), float32, of the run's images of one kind; computed once.

    Raises:
        MetricMissingError: if the extractor or the images cannot be had.
    """
    extract = find_extractor(outputs, name)

    def compute() -> Tensor:
        if source == "test images":
            return cached_features(extract, outputs.test_images, cache_folder(outputs) / "features")
        images = outputs.reconstructions if source == "reconstructions" else outputs.samples
        return extract(images)

    return outputs.shared(f"{name} features of {source}", compute)


def cached_features(extract: FeatureExtractor, images: Tensor, folder: Path) -> Tensor:
    """Features (N, D) of images, from ``folder`` if they have been computed before.

    Inception takes a good part of an hour for 10,000 images on one CPU core, and every run on a
    dataset needs those of its test images.
    """
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    path = folder / f"{extract.identity}-{digest.hexdigest()[:32]}.safetensors"
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError):
        found = extract(images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            whole = Path(temporary) / path.name
            save_file({"features": found}, whole)
            whole.replace(path)
    except OSError:
        pass  # a folder that cannot be written costs time, not the value
    return found


def cache_folder(outputs: Outputs) -> Path:
    """Where what is computed once per dataset is kept."""
    return outputs.cache or user_cache_path("hgmvae-bench")
