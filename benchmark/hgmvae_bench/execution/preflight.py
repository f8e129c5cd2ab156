"""Checks before a grid is run: the data is available and every model can be built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.execution.process_state import restored_process_state
from hgmvae_bench.grid import Cell, Grid, GridError
from hgmvae_bench.grid.errors import LocatedError, describe_validation_error, join_lines
from hgmvae_bench.plugins.protocols import ChecksEpochs
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.network.encoders import Network


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

    Args:
        grid: the grid of the cells.
        cells: the cells to check.
        data: the available datasets; the shape of other images comes from their plug-in.

    Raises:
        GridError: if a model cannot be built or does not support the number of epochs.
        PluginError: if a plug-in builds something that is not a model of the suite.
    """
    with restored_process_state():
        _raise_errors(grid, (e for cell in cells for e in _find_errors(grid, cell, data)))


def _find_errors(
    grid: Grid, cell: Cell, data: Mapping[tuple[str, int], ImageData]
) -> Iterator[LocatedError]:
    """Yield the errors of one cell's settings."""
    dataset, name, _ = grid.cell_names[cell]
    images = data.get((cell.dataset, cell.image_size))
    side, channels = cell.image_size, resolve_dataset(cell.dataset).channels
    input_dim = (channels, side, side) if images is None else images.input_dim
    try:
        Network(input_dim, cell.network.width)
    except ValueError as error:
        yield ("datasets", dataset, "image_size"), str(error)
        return
    try:
        model = build_model(cell, input_dim)
    except ValidationError as error:
        for each in error.errors():
            yield ("models", name, "settings", *each["loc"]), describe_validation_error(each)
        return
    except ValueError as error:
        yield ("models", name), f"{cell.slug} cannot be built: {error}"
        return
    except SystemExit as error:
        yield ("models", name), f"{cell.slug} cannot be built: it exits with status {error.code}"
        return
    if isinstance(model, ChecksEpochs):
        try:
            model.check_epochs(cell.training.epochs)
        except ValueError as error:
            yield ("training", "epochs"), f"{name}: {error}"


def _raise_errors(grid: Grid, errors: Iterable[LocatedError]) -> None:
    """Raise a GridError with one line for each error; several cells may have the same one."""
    if lines := list(dict.fromkeys(grid.format_error(*error) for error in errors)):
        raise GridError(join_lines(lines))
