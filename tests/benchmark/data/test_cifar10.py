from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision import datasets

from hgmvae_bench.data import DataError, IncompleteDataWarning
from hgmvae_bench.data.cifar10 import CIFAR10

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def python2_pickle(pixels: npt.NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch as the published files have it: protocol 2, byte strings, NumPy of its day."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def whole(number: int) -> bytes:
        return b"J" + struct.pack("<i", number)

    content = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(",
            short(b"batch_label"),
            short(b"training batch 1 of 5"),
            short(b"labels"),
            b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            short(b"data"),
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85",
            short(b"b") + b"\x87R(K\x01",
            whole(pixels.shape[0]) + whole(pixels.shape[1]) + b"\x86",
            b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03",
            short(b"|") + b"NNN" + whole(-1) + whole(-1) + b"K\x00tb\x89",
            b"T" + struct.pack("<i", len(content)) + content + b"tb",
            short(b"filenames"),
            b"](" + b"".join(short(b"a_%06d.png" % i) for i in range(len(labels))) + b"e",
            b"u.",
        ]
    )


def batch(number: int, rows: int = 4) -> tuple[npt.NDArray[np.uint8], list[int]]:
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
    return pixels, random.integers(0, 10, rows).tolist()


@pytest.fixture
def cifar10(root: Path) -> Path:
    """Six files of four images each, in the format of the published ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(python2_pickle(*batch(number)))
    return folder


def test_the_published_format_is_read(cifar10: Path, root: Path) -> None:
    with (
        pytest.warns(IncompleteDataWarning, match="20 training images, but CIFAR-10 has 50,000"),
        pytest.warns(IncompleteDataWarning, match="4 test images, but CIFAR-10 has 10,000"),
    ):
        data = CIFAR10.load(root, image_size=32)
    assert data.train_images.shape == (20, 3, 32, 32)
    pixels, labels = batch(5)
    assert torch.equal(data.test_images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert data.test_labels is not None
    assert data.test_labels.tolist() == labels
    assert data.class_names[3] == "cat"


def test_torchvision_reads_the_same_pixels(
    cifar10: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    official = datasets.CIFAR10(root, train=True)
    with pytest.warns(IncompleteDataWarning):
        data = CIFAR10.load(root, image_size=32)
    assert data.train_labels is not None
    assert np.array_equal(data.train_images.permute(0, 2, 3, 1).numpy(), official.data)
    assert data.train_labels.tolist() == official.targets


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_copy_saved_again_by_python_3_is_read(cifar10: Path, root: Path, protocol: int) -> None:
    pixels, labels = batch(5)
    content = pickle.dumps({"data": pixels, "labels": labels}, protocol=protocol)
    (cifar10 / "test_batch").write_bytes(content)
    with pytest.warns(IncompleteDataWarning):
        data = CIFAR10.load(root, image_size=32)
    assert torch.equal(data.test_images.flatten(1), torch.from_numpy(pixels))


class Harmful:
    """What an attacker would put in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused(cifar10: Path, root: Path, protocol: int) -> None:
    content = {"data": Harmful(root / "harm"), "labels": []}
    (cifar10 / "data_batch_3").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=r"refers to (posix|nt)\.mkdir, but only arrays") as caught:
        CIFAR10.load(root, image_size=32)
    assert str(cifar10 / "data_batch_3") in str(caught.value)
    assert not (root / "harm").exists()


@pytest.mark.parametrize(
    "name", [b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy.core.multiarray\nfromfile\n"]
)
def test_only_names_that_arrays_need_are_allowed(cifar10: Path, root: Path, name: bytes) -> None:
    (cifar10 / "test_batch").write_bytes(b"\x80\x02" + name + b".")
    with pytest.raises(DataError, match="only arrays are allowed"):
        CIFAR10.load(root, image_size=32)


PIXELS, LABELS = batch(0)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (python2_pickle(PIXELS, LABELS)[:-2000], "cannot be read"),
        (b"", "cannot be read"),
        (b"not a pickle", "cannot be read"),
        (pickle.dumps([1, 2]), "no mapping with 'data' and 'labels'"),
        (pickle.dumps({"data": "pixels", "labels": []}), "not a uint8 array"),
        (python2_pickle(PIXELS[:, :-3], LABELS), "not a uint8 array"),
        (python2_pickle(PIXELS, LABELS[:-1]), "not 4 integers below 10"),
        (python2_pickle(PIXELS, [*LABELS[:-1], 10]), "not 4 integers below 10"),
    ],
)
def test_a_damaged_file_is_named(cifar10: Path, root: Path, content: bytes, fault: str) -> None:
    (cifar10 / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=fault) as caught:
        CIFAR10.load(root, image_size=32)
    assert str(cifar10 / "data_batch_2") in str(caught.value)


def test_a_missing_file_is_named(cifar10: Path, root: Path) -> None:
    (cifar10 / "test_batch").unlink()
    with pytest.raises(DataError, match=r"test_batch: .* not exist"):
        CIFAR10.load(root, image_size=32)


def test_other_image_sizes_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="CIFAR-10 is 32×32"):
        CIFAR10.load(root, image_size=64)


def test_check_compares_the_published_checksums(cifar10: Path, root: Path) -> None:
    (cifar10 / "test_batch").unlink()
    report = CIFAR10.check(root, lambda *_: None)
    assert not report.complete
    assert [file.state for file in report.files] == ["damaged"] * 5 + ["missing"]


@pytest.fixture
def published(server, cifar10: Path, monkeypatch: pytest.MonkeyPatch):
    """A server with the small batches as an archive, known to torchvision as the real one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(cifar10, arcname="cifar-10-batches-py")
    sums = {
        name: hashlib.md5((cifar10 / name).read_bytes(), usedforsecurity=False).hexdigest()
        for name in NAMES
    }
    content = buffer.getvalue()
    server.files["/cifar.tar.gz"] = content
    known = datasets.CIFAR10
    monkeypatch.setattr(known, "url", f"{server.url}/cifar.tar.gz")
    archive_md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(known, "tgz_md5", archive_md5)
    monkeypatch.setattr(known, "train_list", [[name, sums[name]] for name in NAMES[:5]])
    monkeypatch.setattr(known, "test_list", [["test_batch", sums["test_batch"]]])
    return server


def test_fetch_downloads_verifies_and_unpacks(published, tmp_path: Path) -> None:
    root = tmp_path / "fresh" / "data"
    published.break_after = [1000]
    CIFAR10.fetch(root, lambda *_: None)
    assert CIFAR10.check(root, lambda *_: None).complete
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert published.n_requests == 2
    CIFAR10.fetch(root, lambda *_: None)
    assert published.n_requests == 2


def test_incomplete_data_is_not_replaced(published, cifar10: Path, root: Path) -> None:
    (cifar10 / "test_batch").write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        CIFAR10.fetch(root, lambda *_: None)
    assert (cifar10 / "test_batch").read_bytes() == b"mine"
    assert published.n_requests == 0
