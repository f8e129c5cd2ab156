"""Downloads that resume, and archives unpacked so that all of it appears or nothing.

A file that is still coming in has ``.part`` behind its name; only a whole file with the right
checksum gets its own. A broken connection is taken up again where it ended, in the same call or in
a later one.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from hgmvae_bench.data import DataError
from hgmvae_bench.data.source import Progress, is_writable, reason

ATTEMPTS = 5
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18

# No answer, where trying again may help; what a server refuses is an HTTPError instead.
NO_ANSWER = (http.client.HTTPException, ConnectionError, TimeoutError)
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


class TransferError(Exception):
    """A download from one address that did not succeed, with the reason."""


class ConnectionLostError(Exception):
    """A connection that broke while the file came in."""


def fetch_file(
    urls: Sequence[str], target: Path, *, md5: str | None, progress: Progress, by_hand: str
) -> bool:
    """Bring a file to ``target``, from the first address that gives it whole.

    Args:
        urls: http or https addresses of the same file, best first.
        target: where to. If it is there with the right checksum, nothing is downloaded.
        md5: what its publisher says it has (hex), or None where none is known.
        progress: is told the bytes.
        by_hand: what to do without network, for the message.

    Returns:
        Whether it was downloaded.

    Raises:
        DataError: if no address gives it, or it cannot be written.
    """
    if _is_there(target, md5):
        return False
    from filelock import FileLock, Timeout

    failures = []
    part = target.with_name(f"{target.name}.part")
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f"{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(f"{target} is being downloaded by another process") from error
        try:
            for url in urls:
                try:
                    _transfer(url, part, md5, progress)
                except TransferError as error:
                    failures.append(f"{url}: {error}")
                    continue
                part.rename(target)
                _validator(part).unlink(missing_ok=True)
                return True
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    raise DataError(f"{target.name} cannot be downloaded: {'; '.join(failures)}; {by_hand}")


def fetch_from_drive(drive_id: str, target: Path, *, md5: str, by_hand: str) -> bool:
    """Bring a file from Google Drive to ``target``, through torchvision and ``gdown``.

    Args:
        drive_id: the file's on Google Drive.
        target: where to. If it is there with the right checksum, nothing is downloaded.
        md5: what its publisher says it has (hex).
        by_hand: what to do if that does not work, for the message.

    Returns:
        Whether it was downloaded.

    Raises:
        DataError: if it cannot be had that way, which is common: Google Drive limits downloads.
    """
    if _is_there(target, md5):
        return False
    from torchvision.datasets.utils import download_file_from_google_drive

    partial = target.with_name(f".{target.name}.partial")
    with _writing(target):
        try:
            partial.mkdir(parents=True, exist_ok=True)
            download_file_from_google_drive(drive_id, partial, target.name, md5)
            (partial / target.name).rename(target)
        # gdown has exceptions of its own, and of the libraries that it uses; it may be missing.
        except Exception as error:
            raise DataError(
                f"{target.name} cannot be downloaded from Google Drive ({reason(error)}); {by_hand}"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_there(target: Path, md5: str | None) -> bool:
    """Whether a file is there already.

    Raises:
        DataError: if it is, but is another one.
    """
    if target.exists() and md5 is not None and md5_of(target) != md5:
        raise DataError(
            f"{target} is not the published file (its MD5 is not {md5}); "
            "delete it, and it is downloaded anew"
        )
    return target.exists()


def _transfer(url: str, part: Path, md5: str | None, progress: Progress) -> None:
    """Complete ``part`` from one address.

    Raises:
        TransferError: if that fails; what came in stays for the next call, unless it is wrong.
        OSError: if the file cannot be written; what came in is removed.
    """
    failures = 0
    while True:
        before = _size(part)
        try:
            whole = _receive(url, part, progress)
            fault = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise TransferError(f"the server answers {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            if not isinstance(error.reason, NO_ANSWER):
                raise TransferError(_words(error.reason)) from error
            whole, fault = False, _words(error.reason)
        except (ConnectionLostError, *NO_ANSWER) as error:
            whole, fault = False, reason(error)
        if whole:
            break
        # Only attempts in a row that bring nothing count.
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS or (failures and _size(part) == 0):
            raise TransferError(f"{fault} ({_size(part):,} bytes are kept to go on from)")
        time.sleep(PAUSE_SECONDS)
    if md5 is not None and md5_of(part) != md5:
        _discard(part)
        raise TransferError(f"what it gives is not the published file (its MD5 is not {md5})")


def _receive(url: str, part: Path, progress: Progress) -> bool:
    """Ask once for what is missing of ``part`` and append it.

    Returns:
        Whether the file is whole now.
    """
    headers = {"User-Agent": "hgmvae-bench", "Accept-Encoding": "identity"}
    validator = _validator(part)
    if _size(part) and validator.exists():
        # The server sends the rest only of the very file that was begun, else all of its new one.
        headers |= {
            "Range": f"bytes={_size(part)}-",
            "If-Range": validator.read_text(encoding="utf-8"),
        }
    if not url.startswith(("http://", "https://")):
        raise TransferError("not an http or https address")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked above)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        # Nothing lies beyond what there is: it was whole, or it is of no use.
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
            return True
        _discard(part)
        return _receive(url, part, progress)
    with response:
        start = 0
        if response.status == http.client.PARTIAL_CONTENT:
            start = _size(part)
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise TransferError("the server sends another range than it was asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        try:
            _note_validator(validator, response.headers)
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                for chunk in _chunks(response):
                    file.write(chunk)
                    progress(part.name.removesuffix(".part"), file.tell(), total)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            _discard(part)
            raise
    return total is None or _size(part) == total


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes in, with the network's errors told apart from the disk's."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionLostError(_words(error)) from error


def _validator(part: Path) -> Path:
    """Where the server's mark of the file that ``part`` belongs to is kept."""
    return part.with_name(f"{part.name}.validator")


def _note_validator(path: Path, headers: Any) -> None:
    etag = headers.get("ETag")
    # RFC 9110 admits no weak entity tag in If-Range.
    mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if mark:
        path.write_text(mark, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _words(error: Any) -> str:
    return reason(error) if isinstance(error, BaseException) else str(error)


def md5_of(path: Path) -> str:
    """MD5 (hex) of a file: what publishers of datasets give, not a protection against forgery."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def gunzip(archive: Path, target: Path) -> None:
    """Unpack a .gz file to ``target``.

    Raises:
        DataError: if the archive is damaged, or the target cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    with _writing(target), _naming(archive):
        try:
            with gzip.open(archive) as source, partial.open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path, top: str, progress: Progress) -> None:
    """Unpack the folder ``top`` of a .tar, .tar.gz or .zip archive to ``folder/top``.

    Args:
        archive: read only; it stays.
        folder: where to.
        top: the one folder of the archive that is wanted.
        progress: is told the unpacked bytes.

    Raises:
        DataError: if ``folder/top`` is there already; if the archive is damaged, has no ``top``
            or a member that would land outside; or if the disk cannot be written.
    """
    target = folder / top
    refuse_to_replace(target)
    partial = folder / f".{top}.partial"
    with _writing(target), _naming(archive):
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        try:
            if archive.suffix == ".zip":
                _unpack_zip(archive, partial, progress)
            else:
                _unpack_tar(archive, partial, progress)
            if not (partial / top).is_dir():
                raise DataError(f"{archive} holds no folder {top}; get the original archive")
            (partial / top).rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_to_replace(target: Path) -> None:
    """Stop before work whose result would have to replace what somebody else put there.

    Raises:
        DataError: if ``target`` is there.
    """
    if target.exists():
        raise DataError(f"{target} is there, but not whole; move it away, and fetch again")


def _unpack_tar(archive: Path, folder: Path, progress: Progress) -> None:
    def told(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        done = 0
        for member in tar:
            yield member
            done += member.size
            progress(f"unpacking {archive.name}", done, None)

    with tarfile.open(archive) as tar:
        # The filter refuses "..", links that lead out of the folder, and devices.
        tar.extractall(folder, members=told(tar), filter="data")


def _unpack_zip(archive: Path, folder: Path, progress: Progress) -> None:
    with zipfile.ZipFile(archive) as file:
        done, total = 0, sum(member.file_size for member in file.infolist())
        for member in file.infolist():
            path = PurePosixPath(member.filename)
            # `extract` would quietly put such a member elsewhere.
            if path.is_absolute() or ".." in path.parts:
                raise zipfile.BadZipFile(f"its member {member.filename!r} would land outside")
            file.extract(member, folder)
            done += member.file_size
            progress(f"unpacking {archive.name}", done, total)


@contextmanager
def _naming(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        fault = reason(error).splitlines()[0].rstrip(":")
        raise DataError(
            f"{archive} is damaged or unsafe and was not unpacked ({fault}); "
            "delete it and get the original archive"
        ) from error


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk into a `DataError`."""
    if not is_writable(target.parent):
        raise DataError(
            f"cannot write {target}: the folder is read-only; "
            "name another with --data or HGMVAE_BENCH_DATA"
        )
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or target}: {reason(error)}; make room, "
            "or name another folder with --data or HGMVAE_BENCH_DATA"
        ) from error
