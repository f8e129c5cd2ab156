"""Contract of every registered dataset, of the suite and of third parties alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import check, resolve_dataset
from hgmvae_bench.data.source import Source
from hgmvae_bench.plugins.registry import DATASETS

NAMES = list(DATASETS)
SOURCES = {
    name: source
    for name in NAMES
    if isinstance(source := getattr(DATASETS[name], "source", None), Source)
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HGMVAE_BENCH_CACHE", raising=False)
    monkeypatch.delenv("HGMVAE_BENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.title.strip() == dataset.title != ""
    assert dataset.reference.strip()
    assert dataset.image_size >= 1
    assert dataset.channels in (1, 3)
    assert dataset.reconstruction_loss in ("bce", "mse")


def test_the_datasets_that_are_downloaded_have_a_source() -> None:
    assert len(SOURCES) >= 7


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_the_registered_name_and_says_where_the_data_is(name: str) -> None:
    source = SOURCES[name]
    assert source.name == name
    assert source.address.startswith("http")
    assert source.layout
    assert source.size


@pytest.mark.parametrize("name", NAMES)
def test_titles_are_unique(name: str) -> None:
    assert [DATASETS[other].title for other in NAMES].count(DATASETS[name].title) == 1


@pytest.mark.parametrize("name", NAMES)
def test_without_files_the_error_says_how_to_get_them(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    dataset = DATASETS[name]
    try:
        dataset.load(root, image_size=dataset.image_size)
    except DataError as error:
        message = str(error)
        if name in SOURCES:
            assert f"data fetch {name} --data {root}" in message
            assert SOURCES[name].size in message
        else:
            assert str(root) in message or f"{name}:" in message
        assert "\n" not in message
    else:
        keeps_the_contract(name, root)
    assert list(root.iterdir()) == []


def keeps_the_contract(name: str, root: Path) -> None:
    dataset = resolve_dataset(name)
    size = dataset.image_size
    data = dataset.load(root, image_size=size)
    assert isinstance(data, ImageData)
    assert data.input_dim == (dataset.channels, size, size)
    for images, labels in (
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
    ):
        assert images.dtype == torch.uint8
        assert len(images) > 0
        assert images.is_contiguous()
        assert (labels is None) == (not data.class_names)
        if labels is not None:
            assert labels.dtype == torch.int64
            assert labels.min() >= 0
            assert labels.max() < len(data.class_names)
    if data.factors is not None:
        for values in (data.factors.train, data.factors.test):
            assert values.amin(dim=0).tolist() == [0] * len(data.factors.sizes)
            assert values.amax(dim=0).tolist() == [n - 1 for n in data.factors.sizes]
    assert dataset.load(root, image_size=size).digest == data.digest
    held_out = data.with_validation_as_test(20)
    assert len(held_out.test_images) == 20
    assert held_out.digest != data.digest
    other = dataset.load(root, image_size=2 * size)
    assert other.input_dim == (dataset.channels, 2 * size, 2 * size)
    assert len(other.test_images) == len(data.test_images)
    assert other.digest != data.digest
    assert check(name, root).complete


@pytest.mark.parametrize("name", ["digits", "validation:digits", "sprites", "validation:sprites"])
def test_some_datasets_need_no_files(name: str, tmp_path: Path) -> None:
    keeps_the_contract(name, tmp_path)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_real_data_loads(name: str, folder: str, real_data: Path) -> None:
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    keeps_the_contract(name, real_data)


@pytest.mark.parametrize("options", ["", "?channels=1&image-size=16"])
def test_an_image_folder(tmp_path: Path, options: str) -> None:
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    keeps_the_contract(f"folder:pictures{options}", tmp_path)
