"""Datasets by name: which plug-in a name means, and fetching and checking its data."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from hgmvae_bench.data import DataError
from hgmvae_bench.data.source import DatasetReport, FileStatus, Progress, no_progress
from hgmvae_bench.plugins.protocols import DatasetPlugin
from hgmvae_bench.plugins.registry import DATASETS


@runtime_checkable
class ParametricDataset(Protocol):
    """A dataset plug-in that stands for many datasets: ``folder:PATH`` is ``folder`` with PATH."""

    def with_argument(self, argument: str) -> DatasetPlugin:
        """The dataset for what stands behind the colon.

        Raises:
            UnknownNameError: if the argument names something that is not known.
            ValueError: if it cannot be used otherwise.
        """


@runtime_checkable
class FetchableDataset(Protocol):
    """A dataset plug-in that can get its own files."""

    def fetch(self, root: Path, progress: Progress) -> None:
        """Bring what is missing below ``root``.

        Raises:
            DataError: if that fails; the message says what to do by hand.
        """


@runtime_checkable
class CheckableDataset(Protocol):
    """A dataset plug-in that can say more of its files than whether they load."""

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Look at every file below ``root``."""


def resolve_dataset(name: str) -> DatasetPlugin:
    """The dataset called ``name``, which may have an argument: ``mnist``, ``folder:PATH``.

    Raises:
        UnknownNameError: if no plug-in has that name, or its argument names an unknown option.
        PluginError: if the plug-in cannot be imported.
        ValueError: if the argument cannot be used, or the plug-in takes none.
    """
    registered, colon, argument = name.partition(":")
    plugin = DATASETS[registered]
    if not colon:
        return plugin
    if not isinstance(plugin, ParametricDataset):
        raise ValueError(f"the dataset '{registered}' takes no argument, got '{name}'")
    return plugin.with_argument(argument)


def default_root() -> Path:
    """The data folder when none is named: below the user's cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("hgmvae-bench") / "data"


def fetch(name: str, root: Path, progress: Progress = no_progress) -> None:
    """Bring what is missing of a dataset below ``root``; nothing is downloaded twice.

    Raises:
        DataError: if that fails; the message says what to do by hand.
        UnknownNameError, PluginError, ValueError: as `resolve_dataset` does.
    """
    plugin = resolve_dataset(name)
    if not isinstance(plugin, FetchableDataset):
        raise DataError(
            f"{plugin.title}: its plug-in cannot fetch it; see what its authors say "
            f"({plugin.reference})"
        )
    plugin.fetch(root, progress)


def check(name: str, root: Path, progress: Progress = no_progress) -> DatasetReport:
    """Say what is there of a dataset below ``root``, and whether it is whole.

    A plug-in without a check of its own is loaded, which tells as much.

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
