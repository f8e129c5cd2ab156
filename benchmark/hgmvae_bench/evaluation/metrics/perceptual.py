"""Perceptual distance of the test images and their reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hgmvae_bench.plugins.protocols import Direction, MetricMissingError, Need, WeightsFile

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hgmvae_bench.evaluation.metrics.weights import PretrainedWeights
    from hgmvae_bench.plugins.protocols import Outputs

BATCH_SIZE = 250
# AlexNet's two pooling layers reduce smaller images to nothing.
MIN_SIDE = 31

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
ALEXNET_SHA256 = "7be5be79"
# Hash of the file in the lpips package, version 0.1 of the weights.
LINEAR_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"


def alexnet_weights() -> PretrainedWeights:
    """Return the published weights of torchvision's AlexNet."""
    from hgmvae_bench.evaluation.metrics.weights import PretrainedWeights

    return PretrainedWeights("AlexNet of torchvision", ALEXNET_URL, ALEXNET_SHA256)


@lru_cache(maxsize=1)
def alexnet_lpips(folder: Path | None, device: torch.device) -> nn.Module:
    """Build the ``lpips`` network on AlexNet after checking both files of weights.

    Raises:
        MetricMissingError: if weights are unavailable or differ from the published ones.
    """
    import hashlib
    import warnings

    import lpips
    import torch

    from hgmvae_bench.evaluation.metrics.weights import read_state

    trunk = alexnet_weights().load(folder)
    linear_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    linear = linear_file.read_bytes()
    if hashlib.sha256(linear).hexdigest() != LINEAR_SHA256:
        raise MetricMissingError(f"{linear_file} is not the file of lpips 0.1.4; reinstall lpips")

    # By default the constructor reads both files unchecked and draws initial parameters from the
    # global generator. On the meta device it does neither.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # lpips calls torchvision with deprecated options
        network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    state = dict(read_state(linear, str(linear_file)))
    for name in network.state_dict():
        # lpips names torchvision's `features.3.weight` `net.slice2.3.weight`.
        if name.startswith("net."):
            state[name] = trunk[f"features.{name.split('.', 2)[2]}"]
    network.load_state_dict(state, strict=False, assign=True)
    return network.to(device).requires_grad_(False)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Lpips:
    """Mean LPIPS between the test images and their reconstructions, on AlexNet."""

    title: str = "LPIPS"
    direction: Direction = "lower"
    range: tuple[float, float] = (0, float("inf"))
    needs: tuple[Need, ...] = ("reconstructions",)
    reference: str = "Zhang et al. 2018; lpips 0.1, AlexNet"
    cost: Literal["cheap", "expensive"] = "expensive"

    def pretrained(self) -> Sequence[WeightsFile]:
        """Return AlexNet's weights; those of the distance come with the lpips package."""
        return [alexnet_weights()]

    def compute(self, outputs: Outputs) -> float:
        """Return the mean over the test images; grey images are repeated in three channels.

        Raises:
            MetricMissingError: if the images are too small, or weights are unavailable.
        """
        import torch

        side = min(outputs.test_images.shape[2:])
        if side < MIN_SIDE:
            raise MetricMissingError(f"AlexNet needs sides of {MIN_SIDE} px, not {side}")
        network = alexnet_lpips(outputs.weights, outputs.device)

        def prepare(images: torch.Tensor) -> torch.Tensor:
            scaled = images.to(outputs.device, torch.float32).div_(127.5).sub_(1)
            return scaled.expand(-1, 3, -1, -1)

        with torch.inference_mode():
            values = [
                network(prepare(originals), prepare(images)).flatten().cpu()
                for originals, images in zip(
                    outputs.test_images.split(BATCH_SIZE),
                    outputs.reconstructions.split(BATCH_SIZE),
                    strict=True,
                )
            ]
        return float(torch.cat(values).double().mean())

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return split, number of images, network and hashes of its weights."""
        return {
            "split": "test",
            "n_images": len(outputs.test_images),
            "extractor": "alexnet (lpips 0.1)",
            "weights": f"sha256 {ALEXNET_SHA256} and {LINEAR_SHA256[:8]}",
            "resize": "none",
        }


LPIPS = Lpips()
