from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import check, resolve_dataset
from hgmvae_bench.data.images import Rule


@pytest.fixture
def pictures(root: Path, paint) -> Path:
    """Two classes of three images."""
    folder = root / "pictures"
    for label in "ab":
        for number in range(3):
            paint(folder / label / f"{number}.png", ord(label) + number)
    return folder


def load(root: Path, image_size: int = 32) -> ImageData:
    return resolve_dataset("folder:pictures").load(root, image_size=image_size)


def entries(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.rglob("entry.json"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded while a dataset is loaded."""
    files: list[str] = []
    decode = Rule.decode
    monkeypatch.setattr(
        Rule, "decode", lambda rule, path: (files.append(Path(path).name), decode(rule, path))[1]
    )
    return files


def test_the_second_start_decodes_nothing(pictures: Path, root: Path, decoded: list[str]) -> None:
    first = load(root)
    assert len(decoded) == 6
    decoded.clear()
    second = load(root)
    assert "digest" in vars(second), "it comes from the sidecar"
    assert decoded == []
    for split in ("train_images", "train_labels", "test_images", "test_labels"):
        assert getattr(first, split).equal(getattr(second, split))
    assert second.class_names == ("a", "b")
    [entry] = entries(root)
    assert entry.parent == root / ".hgmvae-bench-cache"


def test_the_stored_digest_is_that_of_the_content(pictures: Path, root: Path) -> None:
    data = load(root)
    again = ImageData(
        data.train_images.clone(), data.train_labels, data.test_images.clone(), data.test_labels
    )
    assert vars(data)["digest"] == again.digest
    assert load(root).digest == again.digest


def test_a_changed_file_is_decoded_again(
    pictures: Path, root: Path, paint, decoded: list[str]
) -> None:
    before = load(root).digest
    path = pictures / "a" / "1.png"
    status = path.stat()
    paint(path, 999)
    # The same size and, to the second, the same time, as a quick edit may leave it.
    path.write_bytes(path.read_bytes()[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    decoded.clear()
    after = load(root).digest
    assert len(decoded) == 6
    assert after != before
    assert len(entries(root)) == 1, "the outdated entry is removed"


def test_added_and_removed_files_rebuild_the_entry(pictures: Path, root: Path, paint) -> None:
    digests = {load(root).digest}
    extra = paint(pictures / "a" / "9.png", 9)
    digests.add(load(root).digest)
    assert len(digests) == 2
    extra.unlink()
    digests.add(load(root).digest)
    assert len(digests) == 2


def test_a_touched_file_keeps_the_digest(pictures: Path, root: Path) -> None:
    before = load(root).digest
    os.utime(pictures / "a" / "1.png")
    assert load(root).digest == before


def test_each_rule_has_its_own_entry(pictures: Path, root: Path, decoded: list[str]) -> None:
    assert load(root, 32).input_dim == (3, 32, 32)
    assert load(root, 16).input_dim == (3, 16, 16)
    grey = resolve_dataset("folder:pictures?channels=1").load(root, image_size=32)
    assert grey.input_dim == (1, 32, 32)
    decoded.clear()
    load(root, 32)
    load(root, 16)
    assert decoded == []
    assert len(entries(root)) == 3


def test_new_preprocessing_rebuilds_entries(
    pictures: Path, root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(root)
    decoded.clear()
    monkeypatch.setattr("hgmvae_bench.data.images.PREPROCESSING", 2)
    load(root)
    assert len(decoded) == 6


def test_images_are_mapped_and_writing_to_them_changes_no_file(pictures: Path, root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's for arrays that cannot be written to
        load(root)
        data = load(root)
    [entry] = entries(root)
    before = (entry / "train_images.npy").read_bytes()
    data.train_images[0] = 0
    assert data.train_images[0].sum() == 0
    assert (entry / "train_images.npy").read_bytes() == before
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(entry / "train_images.npy") in mapped.read_text()


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "removed", "sidecar", "no sidecar"])
def test_a_changed_entry_is_rebuilt(
    pictures: Path, root: Path, decoded: list[str], damage: str
) -> None:
    expected = load(root).digest
    [entry] = entries(root)
    array, sidecar = entry / "train_images.npy", entry / "entry.json"
    if damage == "cut off":
        array.write_bytes(array.read_bytes()[:-1])
    elif damage == "overwritten":
        array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    elif damage == "removed":
        array.unlink()
    elif damage == "sidecar":
        sidecar.write_text(sidecar.read_text()[:-20])
    else:
        sidecar.unlink()
    decoded.clear()
    assert load(root).digest == expected
    assert len(decoded) == 6


def test_an_entry_contains_no_pickle(pictures: Path, root: Path) -> None:
    load(root)
    [entry] = entries(root)
    array = entry / "train_labels.npy"
    np.save(array, np.array([{"an": "object"}]), allow_pickle=True)
    sidecar = json.loads((entry / "entry.json").read_text())
    status = array.stat()
    sidecar["arrays"]["train_labels.npy"] = [status.st_size, status.st_mtime_ns]
    (entry / "entry.json").write_text(json.dumps(sidecar))
    data = load(root)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [0, 0, 1, 1]


def test_check_finds_a_forged_entry(pictures: Path, root: Path) -> None:
    load(root, image_size=64)
    report = check("folder:pictures", root)
    assert report.complete
    assert "6 images" in report.files[0].detail
    [entry] = entries(root)
    array = entry / "train_images.npy"
    status = array.stat()
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    os.utime(array, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = check("folder:pictures", root)
    assert not report.complete
    assert report.files[0].path == entry
    assert "delete it" in report.files[0].detail


def test_a_data_folder_can_be_moved_with_its_cache(
    pictures: Path, root: Path, decoded: list[str]
) -> None:
    load(root)
    moved = root.with_name("moved")
    root.rename(moved)
    decoded.clear()
    load(moved)
    assert decoded == []


def test_a_read_only_data_folder_is_cached_elsewhere(
    pictures: Path, root: Path, own_cache: Path, decoded: list[str]
) -> None:
    root.chmod(0o555)
    try:
        load(root)
        decoded.clear()
        load(root)
    finally:
        root.chmod(0o755)
    assert decoded == []
    assert not list(root.glob(".*"))
    assert len(entries(own_cache)) == 1


def test_a_cache_in_a_read_only_folder_is_used(
    pictures: Path, root: Path, own_cache: Path, decoded: list[str]
) -> None:
    load(root)
    decoded.clear()
    root.chmod(0o555)
    try:
        load(root)
    finally:
        root.chmod(0o755)
    assert decoded == []
    assert not own_cache.exists()


def test_an_error_names_the_folders_that_cannot_be_written(
    pictures: Path, root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir()
    for folder in (root, own_cache):
        folder.chmod(0o555)
    try:
        with pytest.raises(DataError, match="cannot be written to") as caught:
            load(root)
    finally:
        for folder in (root, own_cache):
            folder.chmod(0o755)
    assert str(own_cache) in str(caught.value)
    assert "HGMVAE_BENCH_CACHE" in str(caught.value)
    chosen = root.with_name("chosen")
    monkeypatch.setenv("HGMVAE_BENCH_CACHE", str(chosen))
    load(root)
    assert len(entries(chosen)) == 1


def leftovers(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failed_write_leaves_no_files(
    pictures: Path, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if call == "fsync":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(Path, "rename", full)
        with pytest.raises(DataError, match=r"No space left on device.*HGMVAE_BENCH_CACHE"):
            load(root)
    assert not leftovers(root / ".hgmvae-bench-cache")
    load(root)


def test_a_full_disk_leaves_no_files(
    pictures: Path, root: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGMVAE_BENCH_CACHE", str(small_disk))
    with pytest.raises(DataError, match="No space left on device") as caught:
        load(root, image_size=600)
    assert "train_images.npy" in str(caught.value)
    assert "take 6 MB" in str(caught.value)
    assert not leftovers(small_disk)
    # These images fit.
    assert load(root, image_size=32).input_dim == (3, 32, 32)


def test_an_interrupt_leaves_no_files(
    pictures: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    assert not leftovers(root / ".hgmvae-bench-cache")


def test_files_of_a_killed_process_are_removed(pictures: Path, root: Path) -> None:
    load(root)
    [entry] = entries(root)
    partial = entry.with_name(f".{entry.name}.partial")
    entry.rename(partial)
    load(root)
    assert entries(root) == [entry]
    assert not partial.exists()


def _load_and_report(root: Path, started, log: Path) -> None:
    decode = Rule.decode

    def logged_decode(rule: Rule, path: str) -> object:
        with log.open("a") as file:
            file.write("decoded\n")
        time.sleep(0.01)
        return decode(rule, path)

    Rule.decode = logged_decode  # type: ignore[assignment]
    started.wait()
    load(root)


def test_processes_that_start_together_decode_once(pictures: Path, root: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, log = context.Event(), root / "log"
    processes = [
        context.Process(target=_load_and_report, args=(root, started, log)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    started.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text().count("decoded") == 6
