"""Protocols of models, datasets and metrics.

`registry` finds plug-ins by name. They import heavy libraries (torch, pythae) inside their methods,
so that listing names and titles is fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import escape_controls, shorten

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import Tensor, nn

    from hgmvae_bench.plugins.image_data import Codes, ImageData, Labels

T = TypeVar("T")

MAX_KNOWN_NAMES = 50
"""Maximum number of known names that a message lists."""

Setting = bool | int | float | str | list[float] | None
ReconstructionLoss = Literal["bce", "mse"]
Direction = Literal["higher", "lower", "neutral"]
"""Which values of a metric are better; values of a neutral metric are not ranked."""
Need = Literal[
    "codes",
    "labels",
    "factors",
    "reconstructions",
    "samples",
    "posterior",
    "component probabilities",
    "log-densities",
]


class UnknownNameError(UserError, LookupError):
    """A name that no plug-in, grid or table has; the message suggests the nearest known names.

    Args:
        kind: what the name should be, such as ``model``.
        name: the unknown name.
        known: the names that exist.
        advice: added to the end of the message.
    """

    def __init__(self, kind: str, name: str, known: list[str], advice: str = "") -> None:
        name = escape_controls(shorten(name))
        if nearest := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
            hint = f"did you mean {' or '.join(nearest)}?"
        else:
            more = ", …" if len(known) > MAX_KNOWN_NAMES else ""
            hint = f"known: {', '.join(known[:MAX_KNOWN_NAMES])}{more}"
        super().__init__(f"unknown {kind} '{name}'; {hint}{advice}")


class PluginError(UserError, RuntimeError):
    """A registered plug-in that cannot be used; the message names it and its owner."""


class BenchmarkModel(Protocol):
    """A built model: a ``pythae.models.BaseAE`` with a deterministic code and a sampled prior.

    ``model({"data": images}, epoch=..., dataset_size=...)`` returns a pythae ``ModelOutput`` with
    ``loss``. Images are (B, C, H, W) in [0, 1]. Every other scalar of the output is recorded in the
    training history under its name. Every epoch has the same scalars; a term that starts later is 0
    until then. If the loss or one of these scalars is not finite, the run counts as diverged.
    ``decoder(latent)["reconstruction"]`` returns images in [0, 1].

    A model may also have the optional hooks `HasObjectives`, `HasStages`, `ChecksEpochs`,
    `HasLatentPosterior`, `HasPosteriorDensity`, `HasPriorDensity` and `HasComponents`. Each is a
    protocol with one method.
    """

    latent_dim: int
    decoder: nn.Module

    def latent_code(self, data: Tensor) -> Tensor:
        """Return the deterministic code (B, L) of images (B, C, H, W): the posterior mean."""

    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw (n_samples, L) from the model's prior with torch's global generator."""

    def update(self) -> None:
        """Finish an epoch (pythae's hook).

        The seeds of a cell that share a GPU are trained jointly, and their updates run at the same
        time in threads. Random numbers drawn here must come from a generator of the model.
        """

    # The part of torch.nn.Module that the suite uses.

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Run the forward pass."""

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def to(self, device: Any) -> Any:
        """Move to a device, in place."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return every parameter and buffer by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Copy parameters and buffers by name."""


# Optional hooks of a built model. They are checked with isinstance, which since Python 3.12 ignores
# attributes that only __getattr__ provides: a hook is a method of the class, or a callable that is
# set on the instance. A hook that is set to None counts as missing.


@runtime_checkable
class HasObjectives(Protocol):
    """A model that trains its parts on different losses."""

    def objectives(self) -> dict[str, list[Tensor]]:
        """Map the name of each loss in the output to the parameters that follow its gradient."""


@runtime_checkable
class HasStages(Protocol):
    """A model whose training step may be recorded once and replayed on a GPU (CUDA graphs).

    Such a step reads no tensor back to Python and changes only tensors, in place. With
    ``run --stack-seeds``, the seeds of the model are trained as one model of stacked weights. This
    needs seeds that differ only in parameters and buffers, and a step that ``torch.func.vmap`` can
    map over these. Otherwise the seeds are trained in turns, and the log names the reason. Without
    this hook, every step runs in Python.
    """

    def stage(self, epoch: int) -> int | None:
        """Return the stage of an epoch (from 1).

        Steps of epochs with the same stage execute the same operations. None: the steps of this
        epoch must run in Python.
        """


@runtime_checkable
class ChecksEpochs(Protocol):
    """A model that needs a minimum number of epochs, such as one with several training stages."""

    def check_epochs(self, epochs: int) -> None:
        """Refuse too few epochs; the suite asks before it trains anything.

        Raises:
            ValueError: if ``epochs`` do not reach every stage.
        """


@runtime_checkable
class HasLatentPosterior(Protocol):
    """A model with a Gaussian posterior q(latent | image).

    Metrics of collapse use it, and so do metrics of likelihood, unless the model also has
    `HasPosteriorDensity`.
    """

    def latent_posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each (B, L), of images (B, C, H, W).

        The mean is the deterministic code.
        """


@runtime_checkable
class HasPosteriorDensity(Protocol):
    """A model whose posterior has a density that is not that of `HasLatentPosterior`.

    Metrics of likelihood need it for posteriors such as normalizing flows, and for models with
    auxiliary latents.
    """

    def sample_posterior(self, data: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
        """Draw latents of images (B, C, H, W) with torch's global generator.

        Returns:
            Latents (n_samples, B, M) and their log-densities log q(latent | image), in nats,
            (n_samples, B). The decoder takes the first ``latent_dim`` dimensions of a latent. The
            others are auxiliary latents, on which images do not depend directly.

        Raises:
            NotImplementedError: if this model's posterior has no density; the message becomes the
                reason of missing metrics.
        """


@runtime_checkable
class HasPriorDensity(Protocol):
    """A model whose prior has a density, which metrics of likelihood use."""

    def prior_log_density(self, latent: Tensor) -> Tensor:
        """Return log p(latent), in nats, (N,), of latents (N, M).

        M is `latent_dim` plus the number of auxiliary latents of `HasPosteriorDensity`.

        Raises:
            NotImplementedError: if this model's prior has no density; the message becomes the
                reason of missing metrics.
        """


@runtime_checkable
class HasComponents(Protocol):
    """A model with mixture components, which metrics of collapse and of own clusters use."""

    def component_probabilities(self, data: Tensor) -> Tensor:
        """Return p(component | image) (B, K) of images (B, C, H, W); rows sum to 1."""


class NetworkBuilder(Protocol):
    """Builder of the encoders and decoders that all models of a grid share.

    Every call returns a module with freshly initialised parameters.
    `hgmvae_bench.training.network.encoders.Network` implements this protocol.
    """

    def feature_encoder(self) -> BaseEncoder:
        """Return the convolutional trunk without heads: images to ``embedding`` (B, F)."""

    def point_encoder(self, latent_dim: int) -> BaseEncoder:
        """Return an encoder to ``embedding``, a code (B, ``latent_dim``)."""

    def gaussian_encoder(self, latent_dim: int) -> BaseEncoder:
        """Return an encoder to ``embedding`` and ``log_covariance``, each (B, ``latent_dim``)."""

    def decoder(self, latent_dim: int) -> BaseDecoder:
        """Return a decoder from (B, ``latent_dim``) to ``reconstruction``, images in [0, 1]."""


class ModelPlugin(Protocol):
    """A plug-in of the entry point group ``hgmvae_bench.models``.

    Attributes:
        title: name in tables and figures.
        reference: publication of the model.
        settings: every setting that a grid may change, with its default. All of them are part of
            the run key, so that a changed default gives a different run (see `HasAddedSettings`
            for an exception).
    """

    title: str
    reference: str
    settings: Mapping[str, Setting]

    def build(
        self,
        *,
        input_dim: tuple[int, int, int],
        latent_dim: int,
        reconstruction_loss: ReconstructionLoss,
        network: NetworkBuilder,
        settings: Mapping[str, Any],
    ) -> BenchmarkModel:
        """Build the model with freshly initialised parameters.

        Raises:
            ValueError: if the value of a setting is invalid.
        """


@runtime_checkable
class ParametricModel(Protocol):
    """A model plug-in that takes an argument: ``pythae:NAME``."""

    def with_argument(self, argument: str) -> ModelPlugin:
        """Return the model for the text after the colon.

        Raises:
            LookupError: if the argument is an unknown name.
            ValueError: if the argument is otherwise invalid.
        """


@runtime_checkable
class HasAddedSettings(Protocol):
    """A model plug-in that gained settings after runs of it had been stored.

    The run key leaves out an added setting while it has its default, so that stored runs keep
    their keys. The default must reproduce what the model computed before the setting existed.

    Attributes:
        added_settings: names of the settings that were added.
    """

    added_settings: Collection[str]


class DatasetPlugin(Protocol):
    """A plug-in of the entry point group ``hgmvae_bench.datasets``.

    Optional protocols for fetching, checking and arguments are in `hgmvae_bench.data.catalogue`.

    Attributes:
        title: name in tables and figures.
        reference: publication of the data.
        image_size: side of the square images in pixels, unless a grid sets another.
        channels: 1 or 3.
        reconstruction_loss: reconstruction term of every model on this dataset.
    """

    title: str
    reference: str
    image_size: int
    channels: int
    reconstruction_loss: ReconstructionLoss

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the dataset below ``root``.

        Raises:
            hgmvae_bench.data.DataError: if it is missing or damaged; the message says what to do.
            ValueError: if the dataset does not support the image size.
        """


class LogDensities(NamedTuple):
    """Log-densities, in nats, of K latents drawn from the posterior of each of B images.

    Attributes:
        observation: log p(image | latent), float64 (B, K).
        prior: log p(latent), float64 (B, K).
        posterior: log q(latent | image), float64 (B, K).
    """

    observation: npt.NDArray[np.float64]
    prior: npt.NDArray[np.float64]
    posterior: npt.NDArray[np.float64]


class Outputs(Protocol):
    """Input of a metric: the data of a run and the outputs of its trained model.

    Each output is computed on first access and cached for the other metrics of the run.
    `MetricPlugin.needs` lists the outputs that a metric uses. Properties raise `MetricMissingError`
    if the model or dataset does not have the output, or if it is not finite.
    """

    @property
    def data(self) -> ImageData:
        """Training and test images with their labels."""

    @property
    def dataset(self) -> str:
        """Registered name of the dataset."""

    @property
    def reconstruction_loss(self) -> ReconstructionLoss:
        """Reconstruction loss of the dataset."""

    @property
    def device(self) -> torch.device:
        """Device on which a metric may compute."""

    @property
    def weights(self) -> Path | None:
        """Folder that is searched first for pretrained weights."""

    @property
    def cache(self) -> Path | None:
        """Folder for files that are computed once per dataset; None: the user's cache folder."""

    @property
    def test_images(self) -> Tensor:
        """Test images, uint8 (N, C, H, W)."""

    @property
    def test_codes(self) -> Codes:
        """Deterministic codes (N, L) of the test images."""

    @property
    def train_codes(self) -> Codes:
        """Deterministic codes (M, L) of the training images."""

    @property
    def posterior(self) -> tuple[Codes, Codes]:
        """Means and log-variances, each (N, L), of the test images' Gaussian posteriors."""

    @property
    def component_probabilities(self) -> Codes:
        """Probabilities (N, K) of the model's components given the test images."""

    def log_densities(self, n_samples: int) -> Iterator[LogDensities]:
        """Draw latents from the posteriors of the test images and yield their log-densities.

        The images come in batches and in order. The draws follow from the run and ``n_samples``.
        The density of an image is Bernoulli for ``bce`` (the negative cross-entropy of pixels in
        [0, 1]) and Gaussian with unit variance for ``mse``.
        """

    @property
    def reconstructions(self) -> Tensor:
        """Reconstructions of the test images from their codes, uint8 (N, C, H, W)."""

    @property
    def samples(self) -> Tensor:
        """Prior samples, as many as there are test images, uint8 (N, C, H, W)."""

    @property
    def test_labels(self) -> Labels:
        """Classes (N,) of the test images."""

    @property
    def train_labels(self) -> Labels:
        """Classes (M,) of the training images."""

    @property
    def n_classes(self) -> int:
        """Number of classes among the test images."""

    @property
    def kmeans_labels(self) -> Labels:
        """k-means clusters (N,) of the test codes, as many as there are classes."""

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached under ``name`` for the other metrics of the run."""

    def seed(self, purpose: str) -> int:
        """Return the run's seed in [0, 2³²) for one purpose."""


class MetricPlugin(Protocol):
    """A plug-in of the entry point group ``hgmvae_bench.metrics``.

    Attributes:
        title: name in tables and figures.
        direction: whether higher or lower is better; ``neutral`` if neither is, so that models are
            not ranked by it.
        range: minimum and maximum value.
        needs: outputs of `Outputs` that it uses besides the test images.
        reference: publication, and the library that computes it.
        cost: ``expensive`` if it takes far longer than most metrics on 10,000 images.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    needs: tuple[Need, ...]
    reference: str
    cost: Literal["cheap", "expensive"]

    def compute(self, outputs: Outputs) -> float:
        """Return the value for one run.

        Raises:
            MetricMissingError: if it cannot be computed; the message is recorded as the reason.
        """

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """Return the data and settings that the value depends on: split, counts, labels, weights.

        Raises:
            MetricMissingError: if ``compute`` does.
        """


@runtime_checkable
class PreparingMetric(Protocol):
    """A metric that needs files which are computed once per dataset and shared by all runs.

    If runs are scored on several machines, the driver computes the files and sends them to each.
    """

    def prepare(
        self, data: ImageData, dataset: str, cache: Path, device: torch.device
    ) -> list[Path]:
        """Return the files below ``cache`` that the values depend on; compute missing ones."""


class WeightsFile(Protocol):
    """A file of pretrained weights (`metrics.weights.PretrainedWeights`)."""

    @property
    def filename(self) -> str:
        """Name of the file in any folder."""

    @property
    def url(self) -> str:
        """Address of the published file."""

    def find(self, folder: Path | None) -> Path | None:
        """Return the path in ``folder`` or the download folder; None if there is no file."""


@runtime_checkable
class WeightedMetric(Protocol):
    """A metric that needs pretrained weights; ``hgmvae-bench plan`` reports missing ones."""

    def pretrained(self) -> Sequence[WeightsFile]:
        """Return the files that the metric needs."""


class MetricMissingError(Exception):
    """A metric that cannot be computed, with the reason; the run continues without it."""
