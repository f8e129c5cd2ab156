"""What has to hold before anything is trained: data that is here, and settings that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import resolve_dataset
from hgmvae_bench.grid import Cell, Grid, GridError
from hgmvae_bench.grid.errors import LocatedError, describe_validation_error
from hgmvae_bench.plugins.protocols import ChecksEpochs
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.network.encoders import Network


def load_data(grid: Grid, root: Path) -> dict[tuple[str, int], ImageData]:
    """Every dataset of a grid by name and image size.

    Raises:
        DataError: if some cannot be loaded; one line for each.
        GridError: if the grid asks for what a dataset does not have.
    """
    data, lacking = available_data(grid, root)
    if lacking:
        present = "".join(f" --dataset {name}" for name, _ in data)
        hint = f"\nto run the grid on what is there: add{present}" if present else ""
        raise DataError("\n".join(f"{name}: {why}" for name, why in lacking.items()) + hint)
    return data


def available_data(
    grid: Grid, root: Path
) -> tuple[dict[tuple[str, int], ImageData], dict[str, str]]:
    """The datasets of a grid that are here, and what is the matter with the others.

    Raises:
        GridError: if the grid asks for an image size or for training images that a dataset does
            not have.
    """
    named: dict[tuple[str, int], str] = {}
    for cell, (name, _, _) in grid.cell_names.items():
        named.setdefault((cell.dataset, cell.image_size), name)
    data: dict[tuple[str, int], ImageData] = {}
    lacking: dict[str, str] = {}
    faults: list[LocatedError] = []
    wanted = grid.spec.training.train_images or 0
    for (dataset, image_size), name in named.items():
        if dataset in lacking:
            continue
        try:
            images = resolve_dataset(dataset).load(root, image_size=image_size)
        except DataError as error:
            lacking[dataset] = str(error)
            continue
        except ValueError as error:
            faults.append((("datasets", name, "image_size"), str(error)))
            continue
        data[dataset, image_size] = images
        if wanted > (there := len(images.train_images)):
            message = f"{name} has only {there} training images, got {wanted}"
            faults.append((("training", "train_images"), message))
    _refuse(grid, faults)
    return data, lacking


def check_cells(
    grid: Grid, cells: Iterable[Cell], data: Mapping[tuple[str, int], ImageData]
) -> None:
    """Build the model of each cell once, so that a bad setting shows before hours of training.

    Args:
        grid: that the cells are of.
        cells: which to check.
        data: the datasets that are here; of another, images are as its plug-in says.

    Raises:
        GridError: if a model cannot be built, or not be trained in so many epochs.
        PluginError: if what a plug-in builds is not a model of the suite.
    """
    with torch.random.fork_rng(devices=[]):
        _refuse(grid, (fault for cell in cells for fault in _faults(grid, cell, data)))


def _faults(
    grid: Grid, cell: Cell, data: Mapping[tuple[str, int], ImageData]
) -> Iterator[LocatedError]:
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
        for fault in error.errors():
            yield ("models", name, "settings", *fault["loc"]), describe_validation_error(fault)
        return
    except ValueError as error:
        yield ("models", name), f"{cell.slug} cannot be built: {error}"
        return
    if isinstance(model, ChecksEpochs):
        try:
            model.check_epochs(cell.training.epochs)
        except ValueError as error:
            yield ("training", "epochs"), f"{name}: {error}"


def _refuse(grid: Grid, faults: Iterable[LocatedError]) -> None:
    """Raise a GridError with a line for each fault; many cells may have the same."""
    if lines := dict.fromkeys(grid.format_error(*fault) for fault in faults):
        raise GridError("\n".join(lines))
