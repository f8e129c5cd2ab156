"""Downloads with pooch, and archives that are unpacked completely or not at all.

pooch streams a file to a temporary name, retries, checks its hash and renames it. This module adds
a list of addresses per file, messages that say what to do, and checks that pooch does not have:
a length that must match the announced one, and archives that may not write outside their folder.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hgmvae_bench.data import DataError
from hgmvae_bench.data.source import Progress, error_reason, is_writable, md5_of
from hgmvae_bench.utils.temporary import temporary_folder

if TYPE_CHECKING:
    import requests

RETRIES = 2
"""Further attempts per address after a broken connection or a wrong hash."""

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18

TEMPORARY = ".hgmvae-bench-tmp"
"""Folder of unfinished files, beside the target."""

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


class TransferError(Exception):
    """A failed download from one address, with the reason."""


def fetch_file(
    urls: Sequence[str], target: Path, *, md5: str | None, progress: Progress, by_hand: str
) -> bool:
    """Download a file from the first address that provides it.

    An interrupted download starts again from the beginning.

    Args:
        urls: http or https addresses of the same file, in order of preference.
        target: path of the file. If it exists with the right hash, nothing is downloaded.
        md5: published MD5 (hex), or None if none is published.
        progress: receives the number of bytes.
        by_hand: instructions to get the file without a network, for the message.

    Returns:
        Whether the file was downloaded.

    Raises:
        DataError: if no address provides the file, or it cannot be written.
    """
    if _exists(target, md5):
        return False
    failures = []
    with _writing(target) as folder:
        for url in urls:
            try:
                _transfer(url, target, folder, md5, progress)
            except TransferError as error:
                failures.append(f"{url}: {error}")
            else:
                return True
    raise DataError(f"{target.name} cannot be downloaded: {'; '.join(failures)}; {by_hand}")


def fetch_from_drive(drive_id: str, target: Path, *, md5: str, by_hand: str) -> bool:
    """Download a file from Google Drive with torchvision and ``gdown``.

    Args:
        drive_id: the file's ID on Google Drive.
        target: path of the file. If it exists with the right hash, nothing is downloaded.
        md5: published MD5 (hex).
        by_hand: instructions to get the file in another way, for the message.

    Returns:
        Whether the file was downloaded.

    Raises:
        DataError: if the download fails, which is common: Google Drive limits downloads.
    """
    if _exists(target, md5):
        return False
    from torchvision.datasets.utils import download_file_from_google_drive

    with _writing(target) as folder:
        try:
            download_file_from_google_drive(drive_id, folder, target.name, md5)
            (folder / target.name).rename(target)
        # gdown may be missing, and raises exceptions of its own and of the libraries that it uses.
        except Exception as error:
            raise DataError(
                f"{target.name} cannot be downloaded from Google Drive ({error_reason(error)}); "
                f"{by_hand}"
            ) from error
    return True


def _exists(target: Path, md5: str | None) -> bool:
    """Whether a file exists.

    Raises:
        DataError: if it exists with another hash.
    """
    if target.exists() and md5 is not None and md5_of(target) != md5:
        raise DataError(
            f"{target} is not the published file (its MD5 is not {md5}); "
            "delete it to download it again"
        )
    return target.exists()


@dataclass
class _ProgressBar:
    """Progress bar for pooch that reports to a `Progress`."""

    task: str
    progress: Progress
    total: int = 0
    done: int = 0

    def update(self, n_bytes: int) -> None:
        self.done = min(self.done + n_bytes, self.total) if self.total else self.done + n_bytes
        self.progress(self.task, self.done, self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        """Nothing to close: the bar belongs to the caller."""


def _transfer(url: str, target: Path, folder: Path, md5: str | None, progress: Progress) -> None:
    """Download a file from one address, by way of a temporary folder.

    Raises:
        TransferError: if that fails.
        OSError: if the file cannot be written.
    """
    import pooch
    import requests

    if not url.startswith(("http://", "https://")):
        raise TransferError("not an http or https address")

    def download(url: str, output_file: str, _: object) -> None:
        bar = _ProgressBar(target.name, progress)
        headers = {"User-Agent": "hgmvae-bench", "Accept-Encoding": "identity"}
        get: Any = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_SECONDS, headers=headers
        )
        try:
            get(url, output_file, None)
        except requests.HTTPError as error:  # not retried, unlike a broken connection
            raise TransferError(f"the server answers {_answer(error)}") from error
        with open(output_file, "rb") as file:  # noqa: PTH123
            os.fsync(file.fileno())
        if bar.total and (size := Path(output_file).stat().st_size) != bar.total:
            raise requests.ConnectionError(f"{size:,} of {bar.total:,} bytes arrived")

    pooch.get_logger().setLevel("WARNING")
    known_hash = None if md5 is None else f"md5:{md5}"
    try:
        pooch.Pooch(
            path=folder,
            base_url="",
            registry={target.name: known_hash},
            urls={target.name: url},
            retry_if_failed=RETRIES,
        ).fetch(target.name, downloader=download)
        (folder / target.name).replace(target)
    except requests.RequestException as error:
        raise TransferError(_cause(error)) from error
    except ValueError as error:
        raise TransferError(f"this is not the published file (its MD5 is not {md5})") from error


def _answer(error: requests.HTTPError) -> str:
    response = error.response
    return str(error) if response is None else f"{response.status_code} {response.reason}"


def _cause(error: BaseException) -> str:
    """The first cause of an error of requests, whose own messages are long."""
    while error.__context__ is not None:
        error = error.__context__
    return error_reason(error)


def gunzip(archive: Path, target: Path) -> None:
    """Unpack a .gz file to ``target``.

    Raises:
        DataError: if the archive is damaged or the target cannot be written.
    """
    with _writing(target) as folder, _reading_archive(archive):
        with gzip.open(archive) as source, (folder / target.name).open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        (folder / target.name).rename(target)


def unpack(archive: Path, folder: Path, top: str, progress: Progress) -> None:
    """Unpack the folder ``top`` of a .tar, .tar.gz or .zip archive to ``folder/top``.

    Args:
        archive: the archive, which is kept.
        folder: folder that receives ``top``.
        top: the folder of the archive to unpack; other members are left out.
        progress: receives the number of unpacked bytes.

    Raises:
        DataError: if ``folder/top`` exists; if the archive is damaged, has no ``top`` or a member
            outside the folder; or if the disk cannot be written.
    """
    target = folder / top
    refuse_to_replace(target)
    with _writing(target) as partial, _reading_archive(archive):
        if archive.suffix == ".zip":
            _unpack_zip(archive, partial, progress)
        else:
            _unpack_tar(archive, partial, progress)
        if not (partial / top).is_dir():
            raise DataError(f"{archive} has no folder {top}; get the original archive")
        (partial / top).rename(target)


def refuse_to_replace(target: Path) -> None:
    """Refuse to replace data that the user may have put there.

    Raises:
        DataError: if ``target`` exists.
    """
    if target.exists():
        raise DataError(f"{target} exists but is incomplete; move it away and fetch again")


def _unpack_tar(archive: Path, folder: Path, progress: Progress) -> None:
    def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        done = 0
        for member in tar:
            yield member
            done += member.size
            progress(f"unpacking {archive.name}", done, None)

    with tarfile.open(archive) as tar:
        # This filter refuses members and links outside the folder, and devices.
        tar.extractall(folder, members=members(tar), filter="data")


def _unpack_zip(archive: Path, folder: Path, progress: Progress) -> None:
    with zipfile.ZipFile(archive) as file:
        done, total = 0, sum(member.file_size for member in file.infolist())
        for member in file.infolist():
            path = PurePosixPath(member.filename)
            # `extract` would silently write such a member to another place.
            if path.is_absolute() or ".." in path.parts:
                raise zipfile.BadZipFile(f"its member {member.filename!r} lies outside the folder")
            file.extract(member, folder)
            done += member.file_size
            progress(f"unpacking {archive.name}", done, total)


@contextmanager
def _reading_archive(archive: Path) -> Iterator[None]:
    """Turn errors of damaged or unsafe archives into a `DataError`."""
    try:
        yield
    except _DAMAGED as error:
        detail = error_reason(error).splitlines()[0].rstrip(":")
        raise DataError(
            f"{archive} is damaged or unsafe and was not unpacked ({detail}); "
            "delete it and get the original archive"
        ) from error


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``target`` for a block.

    Raises:
        DataError: if the file system refuses an operation of the block.
    """
    if not is_writable(target.parent):
        raise DataError(
            f"cannot write {target}: the folder is read-only; "
            "name another with --data or HGMVAE_BENCH_DATA"
        )
    try:
        with temporary_folder(target.parent / TEMPORARY) as folder:
            yield folder
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or target}: {error_reason(error)}; free some "
            "space, or name another folder with --data or HGMVAE_BENCH_DATA"
        ) from error
