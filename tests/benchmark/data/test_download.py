from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hgmvae_bench.data import DataError
from hgmvae_bench.data.download import fetch_file, gunzip, unpack
from hgmvae_bench.data.source import no_progress

CONTENT = os.urandom(300_000)


def md5(content: bytes = CONTENT) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def get(
    server,
    root: Path,
    *,
    checksum: str | None = md5(),
    urls: list[str] | None = None,
    progress=lambda *_: None,
) -> bool:
    return fetch_file(
        urls or [f"{server.url}/file"],
        root / "sub" / "file",
        md5=checksum,
        progress=progress,
        by_hand="put it there yourself",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def content(server) -> None:
    server.files["/file"] = CONTENT


def test_a_file_is_downloaded_once_and_its_bytes_are_reported(server, root: Path) -> None:
    reports: list[tuple[str, int, int | None]] = []
    assert get(server, root, progress=lambda *report: reports.append(report))
    assert (root / "sub" / "file").read_bytes() == CONTENT
    assert names(root) == ["file"]
    assert reports[-1] == ("file", 300_000, 300_000)
    assert not get(server, root)
    assert server.n_requests == 1


@pytest.mark.parametrize("checksum", [md5(), None], ids=["checksum", "no checksum"])
def test_a_broken_download_is_tried_again(server, root: Path, checksum: str | None) -> None:
    server.break_after = [100_000, 0]
    get(server, root, checksum=checksum)
    assert (root / "sub" / "file").read_bytes() == CONTENT
    assert server.n_requests == 3
    assert names(root) == ["file"]


@pytest.mark.parametrize("checksum", [md5(), None], ids=["checksum", "no checksum"])
def test_a_download_that_stays_incomplete_leaves_nothing(
    server, root: Path, checksum: str | None
) -> None:
    server.break_after = [200_000] * 3
    with pytest.raises(DataError, match="200000 bytes read, 100000 more expected"):
        get(server, root, checksum=checksum)
    assert names(root) == []


def test_an_answer_without_a_length_is_accepted(server, root: Path) -> None:
    server.announces_length = False
    reports: list[tuple[str, int, int | None]] = []
    get(server, root, progress=lambda *report: reports.append(report))
    assert (root / "sub" / "file").read_bytes() == CONTENT
    assert {total for _, _, total in reports} == {None}


def test_the_next_address_is_tried_after_a_failure(server, root: Path) -> None:
    server.files["/wrong"] = b"an error page"
    urls = [
        "http://127.0.0.1:9/file",
        f"{server.url}/absent",
        f"{server.url}/wrong",
        f"{server.url}/file",
    ]
    get(server, root, urls=urls)
    assert (root / "sub" / "file").read_bytes() == CONTENT
    assert names(root) == ["file"]


def test_without_network_one_message_names_every_address(server, root: Path) -> None:
    server.files["/wrong"] = b"an error page"
    urls = [
        "http://127.0.0.1:9/file",
        "http://nowhere.invalid/file",
        f"{server.url}/absent",
        f"{server.url}/wrong",
        "file:///etc/passwd",
    ]
    with pytest.raises(DataError) as caught:
        get(server, root, urls=urls)
    message = str(caught.value)
    for part in (*urls, "refused", "404", "MD5", "not an http", "put it there yourself"):
        assert part in message
    assert names(root) == []


def test_an_existing_file_with_another_hash_is_named_and_kept(server, root: Path) -> None:
    path = root / "sub" / "file"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the published file") as caught:
        get(server, root)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"mine"


def test_a_read_only_folder_is_refused_before_the_download(server, root: Path) -> None:
    root.chmod(0o555)
    try:
        with pytest.raises(DataError, match="the folder is read-only") as caught:
            get(server, root)
    finally:
        root.chmod(0o755)
    assert str(root / "sub" / "file") in str(caught.value)
    assert server.n_requests == 0
    assert names(root) == []


def test_a_download_on_a_full_disk_leaves_nothing(server, small_disk: Path) -> None:
    server.files["/file"] = bytes(3_000_000)
    with pytest.raises(DataError, match="No space left on device"):
        get(server, small_disk, checksum=None)
    assert names(small_disk) == []


def test_a_killed_download_is_removed_by_the_next_one(server, root: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hgmvae_bench.data.download import *\n"
        "kill = lambda *_: os.kill(os.getpid(), 9)\n"
        "fetch_file([sys.argv[1]], Path(sys.argv[2]), md5=None, progress=kill, by_hand='')"
    )
    target = root / "sub" / "file"
    subprocess.run([sys.executable, "-c", code, f"{server.url}/file", target], check=False)
    assert names(root) != []
    assert get(server, root)
    assert [path for path in root.rglob("*") if path != target.parent] == [target]


def test_a_killed_unpacking_is_removed_by_the_next_one(root: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hgmvae_bench.data.download import *\n"
        "kill = lambda *_: os.kill(os.getpid(), 9)\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]), 'top', kill)"
    )
    archive = root.parent / "archive.zip"
    archive.write_bytes(packed({"top/a": CONTENT, "top/b": CONTENT}, "zip"))
    subprocess.run([sys.executable, "-c", code, archive, root], check=False)
    assert [path.name for path in root.iterdir()] not in ([], ["top"])
    unpack(archive, root, "top", lambda *_: None)
    assert [path.name for path in root.iterdir()] == ["top"]


def test_an_error_of_fsync_leaves_nothing(
    server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        get(server, root)
    assert names(root) == []
    archive = root / "file.gz"
    archive.write_bytes(gzip.compress(b"content"))
    with pytest.raises(DataError, match="No space left on device"):
        gunzip(archive, root / "file")
    assert names(root) == ["file.gz"]


def test_gunzip_restores_the_content(root: Path) -> None:
    (root / "file.gz").write_bytes(gzip.compress(CONTENT))
    gunzip(root / "file.gz", root / "file")
    assert (root / "file").read_bytes() == CONTENT


def packed(members: dict[str, bytes], form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{form.partition('.')[2]}") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FORMS = ["tar", "tar.gz", "zip"]


@pytest.mark.parametrize("form", FORMS)
def test_unpack_writes_the_named_folder_only(root: Path, form: str) -> None:
    archive = root / f"archive.{form}"
    archive.write_bytes(packed({"top/a": b"1", "top/deep/b": b"2", "beside": b"3"}, form))
    reports: list[tuple[str, int, int | None]] = []
    unpack(archive, root, "top", lambda *report: reports.append(report))
    assert reports[-1] == (f"unpacking {archive.name}", 3, 3 if form == "zip" else None)
    assert (root / "top" / "deep" / "b").read_bytes() == b"2"
    assert names(root) == sorted(["a", "b", archive.name])
    with pytest.raises(DataError, match="exists but is incomplete"):
        unpack(archive, root, "top", no_progress)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0, 0.3, 0.7], ids=["empty", "a third", "most"])
def test_a_truncated_archive_is_named_and_leaves_nothing(
    root: Path, form: str, kept: float
) -> None:
    content = packed({"top/a": CONTENT, "top/b": CONTENT}, form)
    archive = root / f"archive.{form}"
    archive.write_bytes(content[: round(len(content) * kept)])
    with pytest.raises(DataError, match="is damaged or unsafe") as caught:
        unpack(archive, root, "top", no_progress)
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in root.iterdir()] == [archive.name]


def test_an_empty_gz_is_unpacked_to_an_empty_file(root: Path) -> None:
    archive = root / "file.gz"
    archive.touch()
    gunzip(archive, root / "file")
    assert (root / "file").read_bytes() == b""


@pytest.mark.parametrize("damage", [slice(0, 60), slice(10, None)])
def test_a_damaged_gz_is_named_and_leaves_nothing(root: Path, damage: slice) -> None:
    archive = root / "file.gz"
    archive.write_bytes(gzip.compress(CONTENT)[damage])
    with pytest.raises(DataError, match=r"file.gz is damaged"):
        gunzip(archive, root / "file")
    assert names(root) == ["file.gz"]


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *((form, name) for form in FORMS for name in ("../outside", "top/../../outside")),
        ("zip", "/outside-of-it"),
    ],
)
def test_members_outside_the_folder_are_refused(root: Path, form: str, name: str) -> None:
    archive = root / f"archive.{form}"
    archive.write_bytes(packed({"top/a": b"1", name: b"harm"}, form))
    with pytest.raises(DataError, match="unsafe"):
        unpack(archive, root, "top", no_progress)
    assert names(root.parent) == [archive.name]
    assert not Path("/outside-of-it").exists()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "zip"])
def test_an_absolute_member_of_a_tar_file_stays_inside_the_folder(root: Path, form: str) -> None:
    """The filter of tarfile removes the leading slash."""
    archive = root / f"archive.{form}"
    archive.write_bytes(packed({"top/a": b"1", "/outside-of-it": b"harm"}, form))
    unpack(archive, root, "top", no_progress)
    assert names(root) == ["a", archive.name]
    assert not Path("/outside-of-it").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_outside_the_folder_and_devices_are_refused(root: Path, kind: bytes) -> None:
    archive = root / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = kind, "../../../secret"
        tar.addfile(link)
        inside = tarfile.TarInfo("top/link/file")
        tar.addfile(inside)
    with pytest.raises(DataError, match="unsafe"):
        unpack(archive, root, "top", no_progress)
    assert names(root) == ["archive.tar"]


def test_an_archive_without_the_folder_is_refused(root: Path) -> None:
    archive = root / "archive.tar"
    archive.write_bytes(packed({"other/a": b"1"}, "tar"))
    with pytest.raises(DataError, match="has no folder top"):
        unpack(archive, root, "top", no_progress)
    assert names(root) == ["archive.tar"]


def test_unpacking_on_a_full_disk_leaves_nothing(root: Path, small_disk: Path) -> None:
    archive = root / "archive.tar"
    archive.write_bytes(packed({f"top/{n}": bytes(300_000) for n in range(6)}, "tar"))
    with pytest.raises(DataError, match="No space left on device"):
        unpack(archive, small_disk, "top", no_progress)
    assert list(small_disk.iterdir()) == []
