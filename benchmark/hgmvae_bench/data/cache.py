"""Cache of decoded images as memory-mapped arrays, so that image files are decoded only once.

An entry is a folder of .npy files with a JSON sidecar, written under a temporary name and then
renamed. It is below the data folder or, if that is read-only, in the user's cache folder, and may
be deleted at any time. The arrays are mapped copy-on-write: processes on a machine share the pages,
and changes to a tensor never reach the file.

An entry is used if the sidecar's ``source`` is the identity of the current image files
(`ImageFiles.identity`), and if each array has the size and the modification time that
it was written with. Otherwise the entry is rebuilt. This detects every ordinary change of the
source or of the cache. `CacheEntry.is_intact` also detects a change with forged times: it hashes
the arrays again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.source import FileStatus, error_reason, expand_user, is_writable
from hgmvae_bench.utils.atomic_files import sync_folder

if TYPE_CHECKING:
    from hgmvae_bench.data.images import ImageFiles, SplitName
    from hgmvae_bench.data.source import Progress

ENVIRONMENT = "HGMVAE_BENCH_CACHE"
BELOW_ROOT = ".hgmvae-bench-cache"
SIDECAR = "entry.json"
FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """A valid entry of the cache.

    Attributes:
        folder: folder of the sidecar and the arrays.
        data: memory-mapped images and labels, with the digest that the sidecar holds.
    """

    folder: Path
    data: ImageData

    def is_intact(self) -> bool:
        """Whether the arrays still have the stored digest; this reads all of them."""
        return _read_arrays(self.folder, self.data.class_names).digest == self.data.digest


def load(images: ImageFiles, root: Path) -> ImageData:
    """Load a dataset from the cache; decode it into the cache first if necessary.

    Args:
        images: the image files.
        root: the data folder.

    Raises:
        DataError: if an image file is missing or damaged, or the cache cannot be written.
    """
    from filelock import FileLock

    source = images.identity()
    entry = find(images, root, source)
    if entry is None:
        folder = _writable_folder(images, root)
        with _as_data_error(images, folder):
            folder.mkdir(parents=True, exist_ok=True)
            # One process decodes; the others wait and then find its entry.
            with FileLock(folder / f".{entry_name(images, root)}.lock"):
                entry = find(images, root, source)
                if entry is None:
                    entry = _write(images, source, folder / entry_name(images, root))
    return entry.data


def find(images: ImageFiles, root: Path, source: str | None = None) -> CacheEntry | None:
    """Return the entry for the current image files, or None.

    Args:
        images: the image files.
        root: the data folder.
        source: ``images.identity()``, if it has been computed.

    Raises:
        DataError: if an image file is missing.
    """
    source = source or images.identity()
    for folder in entry_folders(root):
        entry = _open(folder / entry_name(images, root), source)
        if entry is not None:
            return entry
    return None


def check(
    images: ImageFiles, root: Path, progress: Progress, expected: int | None = None
) -> list[FileStatus]:
    """Check that all images exist and can be decoded.

    If a valid entry exists, its arrays are hashed instead, which takes seconds rather than minutes.

    Args:
        images: the image files.
        root: the data folder.
        progress: receives the number of images.
        expected: official number of images, or None.
    """
    statuses = []
    if expected not in (None, images.count):
        detail = f"{images.count:,} images, expected {expected:,}"
        statuses.append(FileStatus(images.folder, "damaged", detail))
    try:
        entry = find(images, root)
    except DataError:
        entry = None
    if entry is None:
        return [*statuses, *images.check(progress)]
    if entry.is_intact():
        detail = f"all {images.count:,} images were decoded, and the cache is intact"
        return [*statuses, FileStatus(entry.folder, "complete", detail)]
    detail = "the cache differs from the decoded images; delete it to decode them again"
    return [*statuses, FileStatus(entry.folder, "damaged", detail)]


def entry_folders(root: Path) -> list[Path]:
    """Folders of entries for the data in ``root``, in order of preference.

    Raises:
        DataError: if `ENVIRONMENT` names the home folder of an unknown user.
    """
    from platformdirs import user_cache_path

    # Other folders serve several data folders, so each has a sub-folder there.
    own = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return [expand_user(chosen) / own]
    return [root / BELOW_ROOT, user_cache_path("hgmvae-bench") / "decoded" / own]


def _writable_folder(images: ImageFiles, root: Path) -> Path:
    folders = entry_folders(root)
    for folder in folders:
        if is_writable(folder):
            return folder
    raise DataError(
        f"{images.title}: the decoded images cannot be stored, because "
        f"{' and '.join(str(folder) for folder in folders)} cannot be written to; "
        f"name a folder with {ENVIRONMENT}"
    )


def entry_name(images: ImageFiles, root: Path) -> str:
    """Name of an entry by dataset and rule; a rebuilt entry replaces the outdated one."""
    folder, root = images.folder.resolve(), root.resolve()
    # A relative path lets the user move a data folder together with its cache.
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    rule = images.rule
    recipe = f"{place}\n{rule.image_size} {rule.channels} {rule.crop}"
    if rule.bits != 8:
        recipe += f" {rule.bits}"
    unique = hashlib.sha256(recipe.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{images.slug}-{rule.image_size}px-{unique}"


def _open(folder: Path, source: str) -> CacheEntry | None:
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        if sidecar["format"] != FORMAT or sidecar["source"] != source:
            return None
        if sidecar["arrays"] != _array_states(folder):
            logger.warning("%s was changed after it was written; decoding again", folder)
            return None
        data = _read_arrays(folder, tuple(sidecar["class_names"]))
        # Set the value of the `cached_property`; `dataclasses.replace` does not copy it.
        vars(data)["digest"] = sidecar["digest"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s); decoding again", folder, error_reason(error))
        return None
    return CacheEntry(folder, data)


def _array_states(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of each array file."""
    states = {}
    for file in sorted(folder.glob("*.npy")):
        status = file.stat()
        states[file.name] = [status.st_size, status.st_mtime_ns]
    return states


def _read_arrays(folder: Path, class_names: tuple[str, ...]) -> ImageData:
    import numpy as np
    import torch

    arrays: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        images, labels = folder / f"{split}_images.npy", folder / f"{split}_labels.npy"
        if images.exists():
            arrays[f"{split}_images"] = torch.from_numpy(
                np.load(images, mmap_mode="c", allow_pickle=False)
            )
            arrays[f"{split}_labels"] = (
                torch.from_numpy(np.load(labels, allow_pickle=False)) if labels.exists() else None
            )
    return ImageData(**arrays, class_names=class_names)


def _write(images: ImageFiles, source: str, folder: Path) -> CacheEntry:
    """Decode all images into a new entry. The caller holds the entry's lock."""
    import numpy as np

    logger.info("decoding %s images of %s once, into %s", f"{images.count:,}", images.title, folder)
    partial = folder.with_name(f".{folder.name}.partial")
    _remove(partial)  # left by a killed process
    try:
        partial.mkdir()
        for split, content in images.splits.items():
            _write_images(images, split, partial / f"{split}_images.npy")
            if content.labels is not None:
                with _open_synced(partial / f"{split}_labels.npy") as file:
                    np.save(file, np.asarray(content.labels, dtype=np.int64), allow_pickle=False)
        # Read from disk, so that the digest is that of the written files.
        digest = _read_arrays(partial, images.class_names).digest
        write_sidecar(partial, images, source, digest)
        _remove(folder)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        _remove(partial)
        raise
    entry = _open(folder, source)
    if entry is None:
        raise DataError(f"{images.title}: {folder} was changed while it was written; try again")
    return entry


def write_sidecar(folder: Path, images: ImageFiles, source: str, digest: str) -> None:
    """Write the sidecar, which marks the entry as complete."""
    sidecar = {
        "format": FORMAT,
        "dataset": images.title,
        "source": source,
        "digest": digest,
        "class_names": images.class_names,
        "arrays": _array_states(folder),
    }
    with _open_synced(folder / SIDECAR) as file:
        file.write(json.dumps(sidecar, indent=1).encode())
    sync_folder(folder)


def _write_images(images: ImageFiles, split: SplitName, path: Path) -> None:
    """Write one split as .npy, block by block.

    A writable memory map would end the process with SIGBUS on a full disk; an ordinary write raises
    an error.
    """
    from numpy.lib import format as npy

    side, channels = images.rule.image_size, images.rule.channels
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(images.splits[split].files), channels, side, side),
    }
    with _open_synced(path) as file:
        npy.write_array_header_1_0(file, header)
        for block in images.blocks(split):
            file.write(block.data)


@contextmanager
def _open_synced(path: Path) -> Iterator[Any]:
    """Open a new binary file and flush it to disk at the end; errors name it."""
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _as_data_error(images: ImageFiles, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        size = images.count * images.rule.channels * images.rule.image_size**2 / 1e6
        raise DataError(
            f"{images.title}: cannot write {error.filename or folder}: {error_reason(error)}; "
            f"the decoded images take {size:,.0f} MB: free some space, or name another folder with "
            f"{ENVIRONMENT}"
        ) from error
