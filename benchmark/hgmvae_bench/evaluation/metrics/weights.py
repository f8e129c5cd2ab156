"""Pretrained weights: located or downloaded, verified by hash, and loaded without running code."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hgmvae_bench.data import DataError
from hgmvae_bench.data.download import fetch_file
from hgmvae_bench.data.source import no_progress
from hgmvae_bench.plugins.protocols import MetricMissingError


@dataclass(frozen=True)
class PretrainedWeights:
    """A published file of weights.

    Attributes:
        title: name of the network, for messages.
        url: address of the file; its last part is the file's name.
        sha256: first digits of the file's SHA-256 (hex).
    """

    title: str
    url: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]

    def find(self, folder: Path | None) -> Path | None:
        """Locate the file in ``folder`` or the cache of ``torch.hub``; None if it is in neither."""
        folders = [known for known in (folder, hub_folder()) if known is not None]
        paths = [known / self.filename for known in folders]
        return next((path for path in paths if path.is_file()), None)

    def load(self, folder: Path | None) -> Mapping[str, Tensor]:
        """Load the tensors by name, on the CPU.

        ``folder`` is searched first, then the cache of ``torch.hub``. A file in neither is
        downloaded to that cache.

        Raises:
            MetricMissingError: if the file is unavailable or is not the published one.
        """
        if (path := self.find(folder)) is not None:
            return self._read(path)
        cache = hub_folder()
        if failure := download(self.url, cache / self.filename):
            raise MetricMissingError(
                f"{self.title}: {self.filename} was not found and cannot be downloaded "
                f"({failure}); download {self.url} into {folder or cache}"
            )
        return self._read(cache / self.filename)

    def _read(self, path: Path) -> Mapping[str, Tensor]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise MetricMissingError(
                f"{self.title}: cannot read {path}: {error.strerror}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if not found.startswith(self.sha256):
            raise MetricMissingError(
                f"{self.title}: {path} is not the published file: its SHA-256 starts "
                f"with {found[: len(self.sha256)]}, not {self.sha256}; "
                f"delete it, or replace it with the file from {self.url}"
            )
        return read_state(content, f"{self.title}: {path}")


def hub_folder() -> Path:
    """Folder in which ``torch.hub`` caches downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_state(content: bytes, source: str) -> Mapping[str, Tensor]:
    """Load the tensors in the bytes of a file that ``torch.save`` wrote, without running code.

    Args:
        content: bytes of the file.
        source: name of the file in messages.

    Raises:
        MetricMissingError: if the file holds anything but tensors by name.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise MetricMissingError(f"{source} does not hold plain weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise MetricMissingError(f"{source} does not hold tensors by name")
    return state


@lru_cache
def download(url: str, target: Path) -> str | None:
    """Try to download a file, once per process; return the reason of a failure, else None."""
    try:
        fetch_file([url], target, md5=None, progress=no_progress, by_hand="")
    except DataError as error:
        return str(error).removesuffix("; ")
    return None
