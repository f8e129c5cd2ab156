"""Checks before a grid is run: data is available, models can be built and metrics imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.execution.isolation import (
    MAX_REASON_LENGTH,
    NoResult,
    is_own,
    map_isolated,
)
from hgmvae_bench.execution.process_state import restored_process_state
from hgmvae_bench.grid import Cell, Grid, GridError
from hgmvae_bench.grid.errors import LocatedError, describe_validation_error, join_lines
from hgmvae_bench.plugins.protocols import ChecksEpochs, PluginError, UnknownNameError
from hgmvae_bench.plugins.registry import METRICS
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.network.encoders import Network
from hgmvae_bench.utils.errors import UserError
from hgmvae_bench.utils.text import shorten

BUILD_SECONDS = 300.0
"""Time after which a model that is being built counts as hung."""


def load_data(grid: Grid, root: Path) -> dict[tuple[str, int], ImageData]:
    """Load every dataset of a grid.

    Returns:
        The datasets by name and image size.

    Raises:
        DataError: if a dataset cannot be loaded; one line for each.
        GridError: if the grid asks for an image size or for training images that a dataset does
            not have.
    """
    data, missing = available_data(grid, root)
    if missing:
        present = "".join(f" --dataset {name}" for name, _ in data)
        hint = f"\nto run the grid on the other datasets, add{present}" if present else ""
        raise DataError("\n".join(f"{name}: {why}" for name, why in missing.items()) + hint)
    return data


def available_data(
    grid: Grid, root: Path
) -> tuple[dict[tuple[str, int], ImageData], dict[str, str]]:
    """Load the datasets of a grid that are available.

    Returns:
        The datasets by name and image size, and the reason for each one that cannot be loaded.

    Raises:
        GridError: if the grid asks for an image size or for training images that a dataset does
            not have.
    """
    named: dict[tuple[str, int], str] = {}
    for cell, (name, _, _) in grid.cell_names.items():
        named.setdefault((cell.dataset, cell.image_size), name)
    data: dict[tuple[str, int], ImageData] = {}
    missing: dict[str, str] = {}
    errors: list[LocatedError] = []
    requested = grid.spec.training.train_images or 0
    for (dataset, image_size), name in named.items():
        if dataset in missing:
            continue
        try:
            images = resolve_dataset(dataset).load(root, image_size=image_size)
        except DataError as error:
            missing[dataset] = str(error)
            continue
        except ValueError as error:
            errors.append((("datasets", name, "image_size"), str(error)))
            continue
        data[dataset, image_size] = images
        available = len(images.train_images)
        if requested > available:
            message = f"{name} has only {available} training images, got {requested}"
            errors.append((("training", "train_images"), message))
    _raise_errors(grid, errors)
    return data, missing


def check_cells(
    grid: Grid, cells: Iterable[Cell], data: Mapping[tuple[str, int], ImageData]
) -> None:
    """Build the model of each cell once, so that an invalid setting fails before hours of training.

    Models of third parties are built in a separate process, which may crash or hang.

    Args:
        grid: the grid of the cells.
        cells: the cells to check.
        data: the available datasets; the shape of other images comes from their plug-in.

    Raises:
        GridError: if a model cannot be built or does not support the number of epochs.
        PluginError: if a plug-in builds something that is not a model of the suite.
    """
    builds = [_Build.of(grid, cell, data) for cell in cells]
    own = [build for build in builds if is_own(build.cell.model)]
    foreign = [build for build in builds if not is_own(build.cell.model)]
    errors = list(_check_foreign(foreign))
    with restored_process_state():
        errors += [error for build in own for error in build.errors()]
    _raise_errors(grid, errors)


def check_metrics(names: Iterable[str]) -> None:
    """Import metrics, so that one that cannot be loaded is refused before hours of training.

    Raises:
        UnknownNameError: if the only error is a name that is not registered.
        PluginError: if metrics cannot be imported or lack members of the protocol; one line each.
    """
    errors: list[UserError] = []
    for name in dict.fromkeys(names):
        try:
            METRICS[name]
        except (PluginError, UnknownNameError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise PluginError(join_lines(map(str, errors)))


class _Build(NamedTuple):
    """A model to build.

    Attributes:
        cell: the cell.
        dataset: name of the dataset in the grid.
        model: name of the model in the grid.
        input_dim: shape (C, H, W) of the images.
    """

    cell: Cell
    dataset: str
    model: str
    input_dim: tuple[int, int, int]

    @classmethod
    def of(cls, grid: Grid, cell: Cell, data: Mapping[tuple[str, int], ImageData]) -> _Build:
        """The build of a cell's model."""
        dataset, model, _ = grid.cell_names[cell]
        images = data.get((cell.dataset, cell.image_size))
        side, channels = cell.image_size, resolve_dataset(cell.dataset).channels
        shape = (channels, side, side) if images is None else images.input_dim
        return cls(cell, dataset, model, shape)

    def errors(self) -> Iterator[LocatedError]:
        """Build the model and yield the errors of the cell's settings."""
        cell, name = self.cell, self.model
        try:
            Network(self.input_dim, cell.network.width)
        except ValueError as error:
            yield ("datasets", self.dataset, "image_size"), str(error)
            return
        try:
            model = build_model(cell, self.input_dim)
        except ValidationError as error:
            for each in error.errors():
                yield ("models", name, "settings", *each["loc"]), describe_validation_error(each)
            return
        except PluginError:
            raise
        except SystemExit as error:
            yield self.failure(f"it exits with status {error.code}")
            return
        except Exception as error:
            yield self.failure(_reason(error))
            return
        if isinstance(model, ChecksEpochs):
            try:
                model.check_epochs(cell.training.epochs)
            except ValueError as error:
                yield ("training", "epochs"), f"{name}: {error}"

    def failure(self, reason: str) -> LocatedError:
        """The error of a model that cannot be built."""
        reason = shorten(reason, MAX_REASON_LENGTH)
        return ("models", self.model), f"{self.cell.slug} cannot be built: {reason}"


def _reason(error: Exception) -> str:
    """Message of an error in one line, with its type unless the message explains itself."""
    message, kind = " ".join(str(error).split()), type(error).__name__
    if message and isinstance(error, ValueError | RuntimeError | MemoryError):
        return message
    return f"{kind}: {message}" if message else kind


def _errors(build: _Build) -> list[LocatedError]:
    """Build a model and list the errors of the cell's settings."""
    return list(build.errors())


def _check_foreign(builds: Sequence[_Build]) -> Iterator[LocatedError]:
    """Build models in another process and yield the errors of the cells' settings."""
    answers = map_isolated(_errors, builds, seconds=BUILD_SECONDS)
    for build, answer in zip(builds, answers, strict=True):
        if isinstance(answer, NoResult):
            yield build.failure(answer.reason)
        else:
            yield from answer


def _raise_errors(grid: Grid, errors: Iterable[LocatedError]) -> None:
    """Raise a GridError with one line for each error; several cells may have the same one."""
    if lines := list(dict.fromkeys(grid.format_error(*error) for error in errors)):
        raise GridError(join_lines(lines))
