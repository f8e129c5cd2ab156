"""Classifier whose features replace Inception's, trained and cached once per dataset.

It is registered with torch-fidelity as the extractor ``hgmvae-bench-classifier``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from hgmvae_bench.data import ImageData
from hgmvae_bench.data.pixels import to_unit
from hgmvae_bench.grid import slugify
from hgmvae_bench.plugins.protocols import MetricMissingError
from hgmvae_bench.utils.atomic_files import write_durably
from hgmvae_bench.utils.seeding import derive_seed
from hgmvae_bench.utils.temporary import CACHE_TEMPORARY, temporary_folder

EXTRACTOR_NAME = "hgmvae-bench-classifier"
LAYER = "64"
N_FEATURES = 64
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "classifier.json"

# Version of the network and its training; increase it when either changes, since values change.
PROTOCOL = 1
STEPS = 1000
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


class Classifier(nn.Module):
    """Three convolutions, a layer of 64 features, and a linear head."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64)
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
                for before, after in pairwise(widths)
            ),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, N_FEATURES),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(N_FEATURES, n_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, n_classes) of uint8 images (B, C, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, 64) of uint8 images (B, C, H, W)."""
        features: Tensor = self.trunk(to_unit(images).sub_(0.5))
        return features

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Classifier:
        """Build the classifier of a state dict; the sizes follow from its tensors."""
        classifier = cls(state["trunk.0.0.weight"].shape[1], len(state["head.1.bias"]))
        classifier.load_state_dict(state)
        return classifier.eval()


class ClassifierExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Extractor of torch-fidelity around the classifier.

    Args:
        name: registered name of the extractor.
        features_list: layers to extract; the classifier has one.
        feature_extractor_weights_path: the classifier's safetensors file.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: Path | str,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        self.classifier = Classifier.from_state(
            load(Path(feature_extractor_weights_path).read_bytes())
        )

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the only layer."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the only layer, for any metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """Refuse compilation, which costs more than it saves for such a small network."""
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return features (B, 64) of uint8 images with the channels of the training images."""
        return (self.classifier.features(images),)


register_feature_extractor(EXTRACTOR_NAME, ClassifierExtractor)


@dataclass(frozen=True)
class ClassifierDescription:
    """Description of a trained classifier, stored beside its weights.

    Attributes:
        dataset: registered name of the dataset.
        data_digest: SHA-256 of its images, labels and factors.
        protocol: version of the network and its training.
        n_train_images: number of training images.
        test_accuracy: accuracy on the test images, 4 digits; None if they have no classes.
        weights_sha256: SHA-256 of the weights file.
    """

    dataset: str
    data_digest: str
    protocol: int
    n_train_images: int
    test_accuracy: float | None
    weights_sha256: str


def trained_classifier(
    data: ImageData, dataset: str, cache: Path, device: torch.device
) -> tuple[Path, ClassifierDescription]:
    """Return the weights file of the dataset's classifier in ``cache``, training it if necessary.

    Raises:
        MetricMissingError: if the dataset has fewer than two classes, or the cache is damaged or
            not writable.
    """
    folder = cache / "classifiers" / f"{slugify(dataset)}-{data.digest[:16]}-{PROTOCOL}"
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            # One process trains while the others wait for its files.
            with (
                FileLock(folder.with_name(f".{folder.name}.lock")),
                temporary_folder(cache / CACHE_TEMPORARY) as temporary,
            ):
                if not folder.exists():
                    _train_into(temporary / "complete", data, dataset, device)
                    (temporary / "complete").rename(folder)
        content = json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))
        description = ClassifierDescription(**content)
        weights = (folder / WEIGHTS_FILE).read_bytes()
        damaged = hashlib.sha256(weights).hexdigest() != description.weights_sha256
    except OSError as error:
        raise MetricMissingError(
            f"the classifier of {dataset} cannot be stored in {folder}: {error}"
        ) from error
    except (ValueError, TypeError):
        damaged = True
    if damaged:
        raise MetricMissingError(
            f"the classifier of {dataset} in {folder} is damaged; delete the folder"
        )
    return folder / WEIGHTS_FILE, description


def _train_into(folder: Path, data: ImageData, dataset: str, device: torch.device) -> None:
    """Train the classifier and store it in a new folder."""
    if data.train_labels is None:
        raise MetricMissingError("the dataset has no classes")
    classes, targets = data.train_labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise MetricMissingError("the training images are all of one class")
    classifier = train_classifier(data.train_images, targets, data.digest, device)
    content = save({name: tensor.cpu() for name, tensor in classifier.state_dict().items()})
    description = ClassifierDescription(
        dataset=dataset,
        data_digest=data.digest,
        protocol=PROTOCOL,
        n_train_images=len(data.train_images),
        test_accuracy=_test_accuracy(classifier, classes, data, device),
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    folder.mkdir()
    write_durably(folder / WEIGHTS_FILE, content)
    write_durably(folder / DESCRIPTION_FILE, json.dumps(asdict(description), indent=2).encode())


def _test_accuracy(
    classifier: Classifier, classes: Tensor, data: ImageData, device: torch.device
) -> float | None:
    """Accuracy on the test images, rounded to 4 digits; None if they have no classes."""
    if data.test_labels is None:
        return None
    with torch.inference_mode():
        predicted = [
            classifier(batch.to(device)).argmax(1) for batch in data.test_images.split(500)
        ]
    is_correct = classes[torch.cat(predicted).cpu()] == data.test_labels
    return round(float(is_correct.double().mean()), 4)


def train_classifier(
    images: Tensor, targets: Tensor, identity: str, device: torch.device
) -> Classifier:
    """Train a classifier for `STEPS` steps.

    Args:
        images: uint8 (N, C, H, W).
        targets: class indices (N,), from 0 upwards.
        identity: identity of the data, from which seeds are derived.
        device: device of the training.

    Returns:
        The classifier in eval mode, on ``device``.
    """
    order = torch.Generator().manual_seed(derive_seed(identity, "classifier order"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(identity, "classifier weights"))
        classifier = Classifier(images.shape[1], int(targets.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=order)
        loss = cross_entropy(classifier(images[batch].to(device)), targets[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()
