"""What a plug-in is, and the registries that find them.

Models, datasets and metrics are looked up by name among the Python entry points of three groups.
The suite's own are registered in its ``pyproject.toml`` exactly as a third party's would be. Names
are listed without importing anything; a plug-in is imported when it is first asked for, and
plug-in objects keep heavy imports (torch, pythae) inside their methods so that this stays quick.
What `hgmvae_bench.extensions` has in use is found beside the entry points.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from hgmvae_bench import extensions
from hgmvae_bench.errors import UserError

if TYPE_CHECKING:
    import torch
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

    def __init__(self, kind: str, name: str, known: list[str], advice: str = "") -> None:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}'; {hint}{advice}")


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

    A model whose training step may be recorded once and replayed on a GPU (CUDA graphs) says so by
    ``stage(epoch)``: an integer that is the same for epochs whose steps do the same work, or None
    for an epoch whose steps must run in Python. Such a step reads no tensor back and changes
    nothing but tensors, in place. Without this method every step runs in Python.

    A model whose training has stages may define ``check_epochs(epochs)``, which raises a ValueError
    if so many epochs do not reach them all: such a grid is refused before anything is trained.

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
        """Called after every epoch (pythae's hook).

        On a GPU the seeds of a cell are trained together, and this is called for all of them at
        once, from threads: random numbers come from a generator of the model's own.
        """

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


@runtime_checkable
class ParametricModel(Protocol):
    """A model plug-in that stands for many models: ``pythae:NAME`` is ``pythae`` with NAME."""

    def with_argument(self, argument: str) -> ModelPlugin:
        """The model for what stands behind the colon.

        Raises:
            LookupError: if the argument names something that is not known.
            ValueError: if it cannot be used otherwise.
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


@runtime_checkable
class PreparingMetric(Protocol):
    """A metric plug-in with something made once per dataset, which has to be the same for all.

    Where runs are scored on several machines, the driver has it made and gives it to each of them.
    """

    def prepare(
        self, data: ImageData, dataset: str, cache: Path, device: torch.device
    ) -> list[Path]:
        """The files below ``cache`` that the metric's values depend on, made if need be."""


class WeightsFile(Protocol):
    """A file of pretrained weights (`hgmvae_bench.metrics.weights.PretrainedWeights`)."""

    @property
    def filename(self) -> str:
        """The file's name, wherever it lies."""

    @property
    def url(self) -> str:
        """Where it is published."""

    def find(self, folder: Path | None) -> Path | None:
        """Where it lies: in ``folder``, or where downloads go; None if it is not here."""


@runtime_checkable
class WeightedMetric(Protocol):
    """A metric that needs pretrained weights, which ``hgmvae-bench plan`` looks for."""

    def pretrained(self) -> Sequence[WeightsFile]:
        """The files that it needs."""


class MetricMissingError(Exception):
    """A metric that cannot be computed here, with the reason; the run goes on without it."""


P = TypeVar("P")


@dataclass(frozen=True)
class Entry:
    """A registered plug-in, which may not have been imported yet.

    Attributes:
        owner: who registers it: a distribution, or a file or module named with ``--plugin``.
        place: where the owner has it.
        load: imports it.
    """

    owner: str
    place: str
    load: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.owner} ({self.place})"


@dataclass(frozen=True)
class Registry(Generic[P]):
    """The plug-ins of one kind, by name.

    Attributes:
        kind: what the plug-ins are, for messages.
        group: their entry point group.
        protocol: what each has to have.
        find: gives the entry points of a group (the installed distributions' by default); asked
            once, since what is installed does not change under a running program.
    """

    kind: str
    group: str
    protocol: type
    find: Callable[..., Any] = entry_points

    def entries(self) -> Mapping[str, Entry]:
        """Entries by name.

        Raises:
            PluginError: if two owners register one name.
        """
        return _entries(self, extensions.in_use())

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self.entries())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entry(self, name: str) -> Entry:
        """The entry called ``name``, without importing it.

        Raises:
            UnknownNameError: if none is registered under that name.
        """
        entries = self.entries()
        if name not in entries:
            advice = f" (a {self.kind} of a plug-in: install that, or name its file with --plugin)"
            raise UnknownNameError(self.kind, name, list(entries), advice)
        return entries[name]

    def __getitem__(self, name: str) -> P:
        """The plug-in called ``name``.

        Raises:
            UnknownNameError: if none is registered under that name.
            PluginError: if it cannot be imported, or lacks something.
        """
        entry = self.entry(name)
        try:
            plugin: P = entry.load()
        except Exception as error:
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner} cannot be loaded from "
                f"{entry.place}: {type(error).__name__}: {error}"
            ) from error
        if lacking := missing_members(plugin, self.protocol):
            raise PluginError(
                f"the {self.kind} '{name}' of {entry.owner} is a {type(plugin).__name__} without "
                f"{', '.join(lacking)}; see hgmvae_bench.plugins.{self.protocol.__name__}"
            )
        return plugin


@functools.cache
def _entries(
    registry: Registry[Any], used: tuple[extensions.Extension, ...]
) -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, entry in _found(registry, used):
        other = entries.get(name)
        # An editable install next to a wheel lists the same entry twice: no conflict.
        if other is not None and str(other) != str(entry):
            raise PluginError(
                f"two owners register the {registry.kind} '{name}': {other} and {entry}; "
                "do without one of them"
            )
        entries[name] = entry
    return entries


def _found(
    registry: Registry[Any], used: tuple[extensions.Extension, ...]
) -> Iterator[tuple[str, Entry]]:
    for point in registry.find(group=registry.group):
        yield point.name, Entry(_distribution(point), point.value, point.load)
    for extension in used:
        for name, plugin in extension.plugins().get(registry.group, {}).items():
            place = extensions.ATTRIBUTES[registry.group]
            yield name, Entry(extension.name, place, functools.partial(_same, plugin))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _same(plugin: P) -> P:
    return plugin


def missing_members(thing: object, protocol: type) -> list[str]:
    """Public members of a protocol that ``thing`` lacks.

    Not by isinstance: a protocol looks attributes up statically, and torch keeps modules elsewhere.
    """
    members = sorted({*protocol.__annotations__, *vars(protocol)})
    return [name for name in members if not name.startswith("_") and not hasattr(thing, name)]


MODELS: Registry[ModelPlugin] = Registry("model", "hgmvae_bench.models", ModelPlugin)
DATASETS: Registry[DatasetPlugin] = Registry("dataset", "hgmvae_bench.datasets", DatasetPlugin)
METRICS: Registry[MetricPlugin] = Registry("metric", "hgmvae_bench.metrics", MetricPlugin)


def resolve_model(name: str) -> ModelPlugin:
    """The model called ``name``, which may have an argument: ``vae``, ``pythae:RAE_L2``.

    Raises:
        UnknownNameError: if no plug-in has that name.
        LookupError: if its argument names something that is not known.
        PluginError: if the plug-in cannot be imported, or lacks something.
        ValueError: if the argument cannot be used, or the plug-in takes none.
    """
    registered, colon, argument = name.partition(":")
    plugin = MODELS[registered]
    if not colon:
        return plugin
    if not isinstance(plugin, ParametricModel):
        raise ValueError(f"the model '{registered}' takes no argument, got '{name}'")
    return plugin.with_argument(argument)
