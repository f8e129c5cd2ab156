"""Datasets by name: finding the plug-in, and fetching and checking its data."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from hgmvae_bench.data import DataError
from hgmvae_bench.data.source import DatasetReport, FileStatus, Progress, no_progress
from hgmvae_bench.plugins.protocols import DatasetPlugin
from hgmvae_bench.plugins.registry import DATASETS
from hgmvae_bench.utils.text import quote


@runtime_checkable
class ParametricDataset(Protocol):
    """A dataset plug-in that takes an argument: ``folder:PATH``."""

    def with_argument(self, argument: str) -> DatasetPlugin:
        """Return the dataset for the text after the colon.

        Raises:
            UnknownNameError: if the argument has an unknown name.
            ValueError: if the argument is otherwise invalid.
        """


@runtime_checkable
class FetchableDataset(Protocol):
    """A dataset plug-in that can download its files."""

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download missing files into ``root``.

        Raises:
            DataError: if that fails; the message says how to get the files by hand.
        """


@runtime_checkable
class CheckableDataset(Protocol):
    """A dataset plug-in that can check its files more closely than by loading them."""

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Check every file of the dataset in ``root``."""


@runtime_checkable
class HasSplitSizes(Protocol):
    """A dataset plug-in whose splits have a known size, so that it need not be loaded for it.

    Attributes:
        n_train_images: number of training images.
        n_test_images: number of test images.
    """

    n_train_images: int
    n_test_images: int


def resolve_dataset(name: str) -> DatasetPlugin:
    """Return the dataset called ``name``, which may have an argument: ``mnist``, ``folder:PATH``.

    Raises:
        UnknownNameError: if no plug-in has that name, or the argument has an unknown option.
        PluginError: if the plug-in cannot be imported.
        ValueError: if the argument is invalid, or the plug-in takes none.
    """
    registered, colon, argument = name.partition(":")
    plugin = DATASETS[registered]
    if not colon:
        return plugin
    if not isinstance(plugin, ParametricDataset):
        raise ValueError(f"the dataset '{registered}' takes no argument, got {quote(name)}")
    return plugin.with_argument(argument)


def default_root() -> Path:
    """Return the default data folder, below the user's cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("hgmvae-bench") / "data"


def fetch(name: str, root: Path, progress: Progress = no_progress) -> None:
    """Download missing files of a dataset into ``root``.

    Raises:
        DataError: if that fails; the message says how to get the files by hand.
        UnknownNameError, PluginError, ValueError: as `resolve_dataset` does.
    """
    plugin = resolve_dataset(name)
    if not isinstance(plugin, FetchableDataset):
        raise DataError(
            f"{plugin.title}: its plug-in cannot download it; see its publication "
            f"({plugin.reference})"
        )
    plugin.fetch(root, progress)


def check(name: str, root: Path, progress: Progress = no_progress) -> DatasetReport:
    """Check the files of a dataset in ``root``.

    If the plug-in has no check of its own, the dataset is loaded.

    Raises:
        UnknownNameError, PluginError, ValueError: as `resolve_dataset` does.
    """
    plugin = resolve_dataset(name)
    if isinstance(plugin, CheckableDataset):
        return plugin.check(root, progress)
    try:
        data = plugin.load(root, image_size=plugin.image_size)
    except DataError as error:
        return DatasetReport(plugin.title, (FileStatus(root, "damaged", str(error)),))
    count = len(data.train_images) + len(data.test_images)
    return DatasetReport(plugin.title, (FileStatus(root, "complete", f"{count:,} images load"),))
