"""Image features for the metrics that compare distributions.

The extractors are torch-fidelity's. Its ``calculate_metrics`` is not used, because it extracts all
features again for each metric. Its feature cache is not used, because its keys are names, so that
it returns the features of other images that were stored under the same name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save
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
from hgmvae_bench.utils.atomic_files import write_durably
from hgmvae_bench.utils.temporary import CACHE_TEMPORARY, temporary_folder

ExtractorName = Literal["inception", "classifier"]
ImageSource = Literal["test images", "reconstructions", "prior samples"]

BATCH_SIZE = 50
INCEPTION = "inception-v3-compat"
INCEPTION_LAYER = "2048"
INCEPTION_SHA256 = "6726825d"


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that extracts features from images, on one device.

    Attributes:
        identity: unique name of network and weights, part of the names of cached files.
        fingerprint: its part of a metric's fingerprint.
        module: torch-fidelity's extractor, in eval mode.
        channels: 3 if it accepts only colour images, else None.
        device: device of ``module``.
    """

    identity: str
    fingerprint: Mapping[str, str | int | float]
    module: FeatureExtractorBase
    channels: Literal[3] | None
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Extract features (N, D), float32 on the CPU, of uint8 images (N, C, H, W).

        Grey images are repeated for a network that needs three channels.
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
    """Build torch-fidelity's Inception, with the network and weights of Heusel et al. 2017.

    Raises:
        MetricMissingError: if the weights are unavailable or differ from the published ones.
    """
    # torch-fidelity unpickles its input without restrictions, so it gets a file of checked tensors.
    clean = io.BytesIO()
    torch.save(dict(INCEPTION_WEIGHTS.load(folder)), clean)
    clean.seek(0)
    # The constructor draws initial parameters from the global generator.
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
    """Return the classifier of the run's dataset, and train it if it is not cached.

    Raises:
        MetricMissingError: if the dataset has fewer than two classes, or the cache is damaged or
            not writable.
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
    extractor_class = FEATURE_EXTRACTORS_REGISTRY[classifier.EXTRACTOR_NAME]
    with torch.random.fork_rng(devices=[]):
        module = extractor_class(
            classifier.EXTRACTOR_NAME, [classifier.LAYER], feature_extractor_weights_path=path
        )
    return FeatureExtractor(
        identity=f"{classifier.EXTRACTOR_NAME}-{description.weights_sha256[:16]}",
        fingerprint=fingerprint,
        module=module.to(outputs.device).eval(),
        channels=None,
        device=outputs.device,
    )


def load_extractor(outputs: Outputs, name: ExtractorName) -> FeatureExtractor:
    """Return an extractor for a run by name.

    Raises:
        MetricMissingError: if it is unavailable.
    """
    if name == "inception":
        return inception_extractor(outputs.weights, outputs.device)
    return outputs.shared("classifier", lambda: classifier_extractor(outputs))


def image_features(outputs: Outputs, name: ExtractorName, source: ImageSource) -> Tensor:
    """Return features (N, D), float32, of one source of the run's images, computed once.

    Raises:
        MetricMissingError: if the extractor or the images are unavailable.
    """
    extract = load_extractor(outputs, name)

    def compute() -> Tensor:
        if source == "test images":
            return cached_features(extract, outputs.test_images, cache_folder(outputs) / "features")
        images = outputs.reconstructions if source == "reconstructions" else outputs.samples
        return extract(images)

    return outputs.shared(f"{name} features of {source}", compute)


def cached_features(extract: FeatureExtractor, images: Tensor, folder: Path) -> Tensor:
    """Return features (N, D) of images, read from ``folder`` if a previous run stored them.

    All runs on a dataset need the features of its test images. Inception takes some 45 minutes
    for 10,000 images on one CPU core.
    """
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    path = folder / f"{extract.identity}-{digest.hexdigest()[:32]}.safetensors"
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError):
        features = extract(images)
    with suppress(OSError):  # Without the file, the next run extracts the features again.
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent / CACHE_TEMPORARY) as temporary:
            temporary_file = temporary / path.name
            write_durably(temporary_file, save({"features": features}))
            temporary_file.replace(path)
    return features


def cache_folder(outputs: Outputs) -> Path:
    """Return the folder for results that are computed once per dataset."""
    return outputs.cache or user_cache_path("hgmvae-bench")
