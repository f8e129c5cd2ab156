from __future__ import annotations

import gzip
import hashlib
import math
import struct
from pathlib import Path

import pytest
import torch
from torchvision import datasets
from typer.testing import CliRunner

from hgmvae_bench.cli.data import app
from hgmvae_bench.data import DataError
from hgmvae_bench.data.mnist import FASHION_MNIST, MNIST, SHAPES, MnistLike


def idx(shape: tuple[int, ...], fill: int = 7) -> bytes:
    """An IDX file of unsigned bytes."""
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
    return header + bytes([fill]) * math.prod(shape)


@pytest.fixture
def fake(root: Path) -> Path:
    """All four files of MNIST in the right format, all black."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, shape in SHAPES.items():
        header = idx(shape)[: 4 * (1 + len(shape))]
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + math.prod(shape))  # zeros that take no room
    return folder


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("dataset", "test_counts"),
    [
        (MNIST, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        (FASHION_MNIST, [1000] * 10),
    ],
    ids=["mnist", "fashion-mnist"],
)
def test_real_files_load_as_published(
    real_data: Path, dataset: MnistLike, test_counts: list[int]
) -> None:
    data = dataset.load(real_data, image_size=32)
    assert data.train_images.shape == (60_000, 1, 32, 32)
    assert data.test_images.shape == (10_000, 1, 32, 32)
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert data.test_labels.bincount().tolist() == test_counts
    assert len(data.class_names) == 10
    border = data.test_images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert border.sum() == 0
    official = getattr(datasets, dataset.torchvision_class)(real_data, train=False)
    assert torch.equal(data.test_images[:, 0, 2:30, 2:30], official.data)
    assert torch.equal(data.test_labels, official.targets)
    unpadded = dataset.load(real_data, image_size=28)
    assert torch.equal(unpadded.test_images[:, 0], official.data)
    assert dataset.check(real_data, lambda *_: None).complete


@pytest.mark.shared_data
def test_the_official_mnist_keeps_its_digest(real_data: Path) -> None:
    train_images = real_data / "MNIST/raw/train-images-idx3-ubyte"
    digest = hashlib.file_digest(train_images.open("rb"), "sha256").hexdigest()
    if digest != "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db":
        pytest.skip("these are not the official training images")
    data = MNIST.load(real_data, image_size=32)
    assert data.train_labels is not None
    assert data.train_labels.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842),
        *(5421, 5918, 6265, 5851, 5949),
    ]
    # The digest is part of every run key, so another value would change all keys.
    assert data.digest == "90039b0919f2a912421a13a3fdde8885db66cd6f38cad123134e16b10c5f09f7"


def test_the_error_for_missing_data_says_how_to_get_it(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        MNIST.load(root, image_size=32)
    message = str(caught.value)
    assert str(root / "MNIST/raw/train-images-idx3-ubyte") in message
    assert f"hgmvae-bench data fetch mnist --data {root}" in message
    assert "12 MB" in message
    assert not list(root.iterdir())


@pytest.mark.parametrize("name", SHAPES)
def test_a_missing_file_is_named(fake: Path, root: Path, name: str) -> None:
    (fake / name).unlink()
    with pytest.raises(DataError, match=f"{name}: .* not exist"):
        MNIST.load(root, image_size=32)
    report = MNIST.check(root, lambda *_: None)
    assert [file.path.name for file in report.files if file.state == "missing"] == [name]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (
            "t10k-images-idx3-ubyte",
            idx((10_000, 28, 28))[:-1],
            "7,840,015 bytes, expected 7,840,016",
        ),
        ("train-labels-idx1-ubyte", b"", "0 bytes, expected 60,008"),
        ("t10k-labels-idx1-ubyte", b"\xff" * 10_008, "damaged header"),
        ("t10k-labels-idx1-ubyte", idx((10_000,), fill=10), "a label 10"),
        ("t10k-images-idx3-ubyte", idx((10_000, 14, 56)), r"has torch.uint8 \(10000, 14, 56\)"),
    ],
)
def test_a_damaged_file_is_named(
    fake: Path, root: Path, name: str, content: bytes, fault: str
) -> None:
    (fake / name).write_bytes(content)
    with pytest.raises(DataError, match=fault) as caught:
        MNIST.load(root, image_size=32)
    assert str(fake / name) in str(caught.value)
    report = MNIST.check(root, lambda *_: None)
    assert [file.path.name for file in report.files if file.state == "damaged"] == [name]


def test_a_size_that_padding_cannot_reach_is_refused(fake: Path, root: Path) -> None:
    for size in (27, 29, 26):
        with pytest.raises(ValueError, match="cannot zero-pad 28 px"):
            MNIST.load(root, image_size=size)


@pytest.fixture
def published(server, monkeypatch: pytest.MonkeyPatch):
    """A mirror of the fake MNIST, known to torchvision as its own."""
    resources = []
    for name, shape in SHAPES.items():
        packed = gzip.compress(idx(shape), compresslevel=1)
        server.files[f"/mnist/{name}.gz"] = packed
        md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        resources.append((f"{name}.gz", md5))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.url}/mnist/"])
    return server


def test_fetched_data_loads_and_passes_the_check(published, root: Path) -> None:
    reports: list[tuple[str, int, int | None]] = []
    MNIST.fetch(root, lambda *report: reports.append(report))
    assert MNIST.check(root, lambda *_: None).complete
    MNIST.load(root, image_size=32)
    assert {path.name for path in (root / "MNIST" / "raw").iterdir()} == set(SHAPES)
    name, done, total = reports[-1]
    assert name == "t10k-labels-idx1-ubyte.gz"
    assert done == total
    # Existing files are not fetched again.
    requests = published.n_requests
    MNIST.fetch(root, lambda *_: None)
    assert published.n_requests == requests


def test_the_commands_fetch_and_check(published, root: Path) -> None:
    published.break_after = [1000]
    for command, answer in (("fetch", f"mnist is in {root}\n"), ("check", "MNIST is complete\n")):
        result = CliRunner().invoke(app, [command, "mnist", "--data", str(root)])
        assert result.exit_code == 0, result.output
        assert result.output.endswith(answer)
    assert published.n_requests == 5


def test_an_archive_put_there_by_hand_is_unpacked_and_kept(published, root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path, content in published.files.items():
        (folder / Path(path).name).write_bytes(content)
    MNIST.fetch(root, lambda *_: None)
    assert MNIST.check(root, lambda *_: None).complete
    assert published.n_requests == 0
    assert (folder / "t10k-labels-idx1-ubyte.gz").exists()


def test_a_damaged_file_is_not_overwritten_by_fetching(published, fake: Path, root: Path) -> None:
    damaged = fake / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        MNIST.fetch(root, lambda *_: None)
    assert damaged.read_bytes() == b"mine"


def test_without_network_one_message_names_address_folder_and_size(
    published, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = ["http://nowhere.invalid/mnist/", "http://127.0.0.1:9/mnist/"]
    monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
    with pytest.raises(DataError) as caught:
        MNIST.fetch(root, lambda *_: None)
    message = str(caught.value)
    for mirror in mirrors:
        assert f"{mirror}train-images-idx3-ubyte.gz" in message
    assert str(root / "MNIST" / "raw") in message
    assert "12 MB" in message
    assert "\n" not in message
    assert not list((root / "MNIST" / "raw").iterdir())
