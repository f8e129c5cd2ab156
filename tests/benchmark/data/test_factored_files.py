"""dSprites and 3D Shapes, read from small files in the format of the official ones."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hgmvae_bench.data import DataError, ImageData, IncompleteDataWarning
from hgmvae_bench.data.dsprites import DSPRITES
from hgmvae_bench.data.factored_file import FactoredFile
from hgmvae_bench.data.shapes3d import SHAPES3D

# The part of dSprites with the first two positions per axis, and of 3D Shapes with the first hues.
DSPRITES_SIZES = (3, 6, 40, 2, 2)
SHAPES3D_SIZES = (2, 2, 2, 8, 4, 15)

Arrays = dict[str, npt.NDArray[Any]]


def grid(sizes: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Every combination, in the order of the official files."""
    return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1).astype(np.int64)


def marked_images(factors: npt.NDArray[np.int64], channels: int) -> npt.NDArray[np.uint8]:
    """Images (N, 64, 64, C) whose first pixels hold the factors as bits or bytes."""
    images = np.zeros((len(factors), 64, 64, channels), dtype=np.uint8)
    if channels == 1:
        bits = (factors[:, :, None] >> np.arange(6)) & 1
        images[:, : factors.shape[1], :6, 0] = bits
    else:
        images[:, 0, : factors.shape[1], 0] = factors
        images[:, 1, 0] = (1, 2, 3)
    return images


def dsprites_arrays() -> Arrays:
    factors = grid(DSPRITES_SIZES)
    classes = np.concatenate([np.zeros((len(factors), 1), dtype=np.int64), factors], axis=1)
    return {
        "metadata": np.array({b"title": b"dSprites dataset"}, dtype=object),
        "imgs": marked_images(factors, 1)[..., 0],
        "latents_classes": classes,
        "latents_values": classes.astype(np.float64),
    }


def shapes3d_arrays() -> Arrays:
    factors = grid(SHAPES3D_SIZES)
    values = [
        np.arange(10) / 10,
        np.arange(10) / 10,
        np.arange(10) / 10,
        np.linspace(0.75, 1.25, 8),
        np.arange(4.0),
        np.linspace(-30, 30, 15),
    ]
    labels = np.stack([v[f] for v, f in zip(values, factors.T, strict=True)], axis=1)
    return {"images": marked_images(factors, 3), "labels": labels}


def write_dsprites(path: Path, **changed: npt.NDArray[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **dsprites_arrays() | changed)


def write_shapes3d(path: Path, **changed: npt.NDArray[Any]) -> None:
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in (shapes3d_arrays() | changed).items():
            file[name] = array


WRITERS = {"dsprites": write_dsprites, "shapes3d": write_shapes3d}
both = pytest.mark.parametrize(
    ("dataset", "write"),
    [(DSPRITES, write_dsprites), (SHAPES3D, write_shapes3d)],
    ids=["dsprites", "shapes3d"],
)


def load(dataset: FactoredFile, root: Path) -> ImageData:
    with pytest.warns(IncompleteDataWarning, match="results are not comparable"):
        return dataset.load(root, image_size=64)


def test_dsprites_are_read_with_their_factors(root: Path) -> None:
    write_dsprites(root / DSPRITES.file)
    data = load(DSPRITES, root)
    assert data.factors is not None
    assert data.factors.sizes == (3, 6, 40, 32, 32)
    assert data.train_images.shape == (2880 - 39, 1, 64, 64)
    for split in ("train", "test"):
        images, values = getattr(data, f"{split}_images"), getattr(data.factors, split)
        assert set(images.unique().tolist()) == {0, 255}
        bits = (images[:, 0, :5, :6] // 255).long()
        assert torch.equal((bits << torch.arange(6)).sum(dim=2), values)
        assert torch.equal(getattr(data, f"{split}_labels"), values[:, 0])


def test_shapes3d_are_read_with_their_factors(root: Path) -> None:
    write_shapes3d(root / SHAPES3D.file)
    data = load(SHAPES3D, root)
    assert data.factors is not None
    assert data.factors.sizes == (10, 10, 10, 8, 4, 15)
    assert data.train_images.shape == (3840 - 80, 3, 64, 64)
    for split in ("train", "test"):
        images, values = getattr(data, f"{split}_images"), getattr(data.factors, split)
        assert torch.equal(images[:, 0, 0, :6].long(), values)
        assert (images[:, :, 1, 0] == torch.tensor([1, 2, 3])).all()
        assert torch.equal(getattr(data, f"{split}_labels"), values[:, 4])


@both
def test_no_image_is_in_both_splits(
    root: Path, dataset: FactoredFile, write: Callable[[Path], None]
) -> None:
    write(root / dataset.file)
    data = load(dataset, root)
    assert data.factors is not None
    everything = torch.cat([data.factors.train, data.factors.test])
    assert len(everything.unique(dim=0)) == len(everything)
    # The first training images are not all of one shape.
    assert data.train_labels is not None
    assert len(data.train_labels[:50].unique()) == len(dataset.class_names)


@pytest.mark.parametrize("dataset", [DSPRITES, SHAPES3D], ids=["dsprites", "shapes3d"])
def test_other_image_sizes_are_refused(root: Path, dataset: FactoredFile) -> None:
    with pytest.raises(ValueError, match="64×64"):
        dataset.load(root, image_size=32)


def test_the_pickled_metadata_is_not_read(root: Path) -> None:
    write_dsprites(root / DSPRITES.file)
    path = root / DSPRITES.file
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"not a pickle" if name == "metadata.npy" else content)
    assert len(load(DSPRITES, root).test_images) == 39


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("dsprites", {"imgs": np.zeros((2880, 32, 32), np.uint8)}, "imgs is uint8"),
        ("dsprites", {"imgs": np.zeros((2880, 64, 64), np.float32)}, "imgs is float32"),
        ("dsprites", {"imgs": np.full((2880, 64, 64), 2, np.uint8)}, "values above 1"),
        ("dsprites", {"latents_classes": np.zeros((2880, 5), np.int64)}, "latents_classes is"),
        ("dsprites", {"latents_classes": np.full((2880, 6), 40)}, "outside the sizes"),
        ("shapes3d", {"images": np.zeros((7, 64, 64, 3), np.uint8)}, "images is uint8"),
        ("shapes3d", {"labels": np.zeros((3840, 5))}, "labels is"),
        ("shapes3d", {"labels": np.full((3840, 6), 0.33)}, "values that 3D Shapes does not have"),
    ],
)
def test_a_file_with_other_arrays_is_damaged(
    root: Path, name: str, changed: Arrays, message: str
) -> None:
    dataset = {"dsprites": DSPRITES, "shapes3d": SHAPES3D}[name]
    WRITERS[name](root / dataset.file, **changed)
    with pytest.raises(DataError, match=message) as caught:
        dataset.load(root, image_size=64)
    assert dataset.file in str(caught.value)
    assert f"data fetch {name}" in str(caught.value)


@both
def test_a_truncated_file_is_damaged(
    root: Path, dataset: FactoredFile, write: Callable[[Path], None]
) -> None:
    path = root / dataset.file
    write(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        dataset.load(root, image_size=64)
    assert [file.state for file in dataset.check(root, lambda *_: None).files] == ["damaged"]


def test_a_changed_pixel_is_found(root: Path) -> None:
    """The archive's checksum covers every image."""
    path = root / DSPRITES.file
    path.parent.mkdir()
    buffer = io.BytesIO()
    np.savez(buffer, **dsprites_arrays())
    content = bytearray(buffer.getvalue())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        DSPRITES.load(root, image_size=64)


@both
def test_fetch_downloads_and_verifies_the_file(
    server, root: Path, tmp_path: Path, dataset: FactoredFile, write: Callable[[Path], None]
) -> None:
    write(root / dataset.file)
    content = (root / dataset.file).read_bytes()
    server.files["/file"] = content
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    small = replace(dataset, url=f"{server.url}/file", md5=md5)
    target = tmp_path / "fetched"
    report = small.check(target, lambda *_: None)
    assert [file.state for file in report.files] == ["missing"]
    small.fetch(target, lambda *_: None)
    assert (target / dataset.file).read_bytes() == content
    assert small.check(target, lambda *_: None).complete
    small.fetch(target, lambda *_: None)
    assert server.n_requests == 1
    other = replace(small, md5="0" * 32)
    with pytest.raises(DataError, match="not the published file"):
        other.fetch(tmp_path / "other", lambda *_: None)
    assert not (tmp_path / "other" / dataset.file).exists()


@pytest.mark.parametrize("dataset", [DSPRITES, SHAPES3D], ids=["dsprites", "shapes3d"])
def test_the_error_for_a_missing_file_says_how_to_get_it(root: Path, dataset: FactoredFile) -> None:
    with pytest.raises(DataError) as caught:
        dataset.load(root, image_size=64)
    message = str(caught.value)
    assert str(root / dataset.file) in message
    assert dataset.source.size in message
    assert f"hgmvae-bench data fetch {dataset.source.name} --data {root}" in message


def test_without_h5py_the_error_names_the_extra(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shapes3d(root / SHAPES3D.file)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"hgmvae-bench\[shapes3d\]"):
        SHAPES3D.load(root, image_size=64)
