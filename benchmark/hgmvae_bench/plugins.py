"""What a plug-in is, and the registries that find them.

Models, datasets and metrics are looked up by name among the Python entry points of three groups.
The suite's own are registered in its ``pyproject.toml`` exactly as a third party's would be. Names
are listed without importing anything; a plug-in is imported when it is first asked for, and
plug-in objects keep heavy imports (torch, pythae) inside their methods so that this stays quick.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from hgmvae_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hgmvae_bench.data import ImageData
    from hgmvae_bench.networks import Network
    from hgmvae_bench.outputs import Outputs

Setting = bool | int | float | str | list[float] | None
ReconstructionLoss = Literal["bce", "mse"]
Direction = Literal["higher", "lower"]
Need = Literal[
    "codes", "labels", "reconstructions", "samples", "posterior", "component probabilities"
]


class UnknownNameError(UserError, LookupError):
    """A name that no plug-in, grid or table answers to; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}'; {hint}")


class PluginError(UserError, RuntimeError):
    """A plug-in that is registered but cannot be used; the message names it and its owner."""


class BenchmarkModel(Protocol):
    """A built model: a ``pythae.models.BaseAE`` with a deterministic code and a sampled prior.

    Called with ``({"data": images}, epoch=..., dataset_size=...)`` it returns a pythae
    ``ModelOutput`` with ``loss``; every other scalar in it goes into the training history under
    its name. Images are (B, C, H, W) in [0, 1]. ``decoder(latent)["reconstruction"]`` gives images
    in [0, 1].

    A model that trains parts on different losses defines ``objectives()`` as well, which maps the
    name of a loss in the output to the parameters that follow it.

    For the metrics of collapse, a model may define two more methods:

    - ``latent_posterior(data) -> (mean, log_var)``, each (B, L): the Gaussian q(latent | image)
      whose mean is the deterministic code, if the model has one;
    - ``component_probabilities(data) -> (B, K)``: how far each image belongs to each of the model's
      components; rows sum to 1.
    """

    latent_dim: int
    decoder: nn.Module

    def latent_code(self, data: Tensor) -> Tensor:
        """The deterministic code (B, L) of images (B, C, H, W): the posterior mean."""

    def sample_latent(self, n_samples: int) -> Tensor:
        """Draw (n_samples, L) from the model's prior with torch's global generator."""

    def update(self) -> None:
        """Called after every epoch (pythae's hook)."""

    # What the suite uses of torch.nn.Module.

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Forward pass."""

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def to(self, device: Any) -> Any:
        """Move to a device, in place."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter."""

    def state_dict(self) -> dict[str, Any]:
        """Every parameter and buffer by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take parameters and buffers by name."""


class ModelPlugin(Protocol):
    """An entry of ``hgmvae_bench.models``.

    Attributes:
        title: the name in tables and figures.
        reference: who published the model.
        settings: every setting that a grid may change, with its default. All of them enter the
            run key, so that a changed default is a different run.
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
        network: Network,
        settings: Mapping[str, Any],
    ) -> BenchmarkModel:
        """Build the model with freshly initialised parameters.

        Raises:
            ValueError: if a setting has a value that the model cannot take.
        """


class DatasetPlugin(Protocol):
    """An entry of ``hgmvae_bench.datasets``.

    It may offer more: to fetch and check its files, or to stand for many datasets with an
    argument behind a colon. `hgmvae_bench.data.catalogue` has the protocols.

    Attributes:
        title: the name in tables and figures.
        reference: who published the data.
        image_size: side of the square images in pixels, unless a grid asks for another.
        channels: 1 or 3.
        reconstruction_loss: the term that every model uses on this dataset.
    """

    title: str
    reference: str
    image_size: int
    channels: int
    reconstruction_loss: ReconstructionLoss

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the dataset below ``root``.

        Raises:
            hgmvae_bench.data.DataError: if it is absent or damaged; the message says what to do.
        """


class MetricPlugin(Protocol):
    """An entry of ``hgmvae_bench.metrics``.

    Attributes:
        title: the name in tables and figures.
        direction: whether higher or lower is better.
        range: the least and the greatest value that it can take.
        needs: what it takes from `hgmvae_bench.outputs.Outputs` beside the test images.
        reference: who published it, and the library that computes it.
        cost: ``dear`` where it takes far longer than the others at 10,000 images.
    """

    title: str
    direction: Direction
    range: tuple[float, float]
    needs: tuple[Need, ...]
    reference: str
    cost: Literal["cheap", "dear"]

    def compute(self, outputs: Outputs) -> float:
        """The value for one run.

        Raises:
            MetricMissingError: if it cannot be computed for these outputs; the reason is recorded.
        """

    def fingerprint(self, outputs: Outputs) -> Mapping[str, str | int | float]:
        """What the value was computed with, beyond the code: split, counts, labels, weights.

        Raises:
            MetricMissingError: where ``compute`` does.
        """


class MetricMissingError(Exception):
    """A metric that cannot be computed here, with the reason; the run goes on without it."""


P = TypeVar("P")


@dataclass(frozen=True)
class Registry(Generic[P]):
    """The plug-ins of one entry point group, by name.

    Attributes:
        kind: what the plug-ins are, for messages.
        group: the entry point group.
        find: gives the entry points of a group (the installed distributions' by default).
    """

    kind: str
    group: str
    find: Callable[..., Any] = entry_points

    def entries(self) -> dict[str, EntryPoint]:
        """Entry points by name.

        Raises:
            PluginError: if two distributions register one name.
        """
        entries: dict[str, EntryPoint] = {}
        for entry in self.find(group=self.group):
            other = entries.get(entry.name)
            # An editable install next to a wheel lists the same entry twice: no conflict.
            if other is not None and (other.value, owner(other)) != (entry.value, owner(entry)):
                raise PluginError(
                    f"two packages register the {self.kind} '{entry.name}': "
                    f"{owner(other)} ({other.value}) and {owner(entry)} ({entry.value}); "
                    "uninstall one of them"
                )
            entries[entry.name] = entry
        return entries

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self.entries())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> P:
        """The plug-in called ``name``.

        Raises:
            UnknownNameError: if none is registered under that name.
            PluginError: if it cannot be imported.
        """
        entries = self.entries()
        if name not in entries:
            raise UnknownNameError(self.kind, name, list(entries))
        entry = entries[name]
        try:
            plugin: P = entry.load()
        except Exception as error:
            raise PluginError(
                f"the {self.kind} '{name}' of {owner(entry)} cannot be loaded from "
                f"{entry.value}: {type(error).__name__}: {error}"
            ) from error
        return plugin


def owner(entry: EntryPoint) -> str:
    """The distribution that registers an entry point, for messages."""
    return entry.dist.name if entry.dist is not None else "an unnamed distribution"


MODELS: Registry[ModelPlugin] = Registry("model", "hgmvae_bench.models")
DATASETS: Registry[DatasetPlugin] = Registry("dataset", "hgmvae_bench.datasets")
METRICS: Registry[MetricPlugin] = Registry("metric", "hgmvae_bench.metrics")
