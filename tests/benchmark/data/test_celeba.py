from __future__ import annotations

import hashlib
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from hgmvae_bench.data import DataError, ImageData, IncompleteDataWarning
from hgmvae_bench.data.celeba import CELEBA

pytestmark = pytest.mark.filterwarnings("ignore::hgmvae_bench.data.IncompleteDataWarning")


def load(root: Path, image_size: int = 64) -> ImageData:
    return CELEBA.load(root, image_size=image_size)


def test_the_partition_file_decides_the_split(celeba: Path, root: Path) -> None:
    # The file is not sorted by split and does not list one of the images.
    listed = [("000003.jpg", 2), ("000001.jpg", 0), ("000002.jpg", 1), ("000004.jpg", 0)]
    (celeba / "list_eval_partition.txt").write_text(
        "".join(f"{name} {split}\n" for name, split in listed)
    )
    data = load(root)
    assert data.validation_images is not None
    assert data.train_images.shape == (2, 3, 64, 64)
    assert data.validation_images.shape == (1, 3, 64, 64)
    assert data.test_images.shape == (1, 3, 64, 64)
    assert data.train_labels is None
    assert data.test_labels is None

    # torchvision's transform, which is in common use, gives the same images.
    usual = transforms.Compose([transforms.CenterCrop(148), transforms.Resize(64)])
    for name, image in (
        ("000001.jpg", data.train_images[0]),
        ("000004.jpg", data.train_images[1]),
        ("000002.jpg", data.validation_images[0]),
        ("000003.jpg", data.test_images[0]),
    ):
        expected = usual(Image.open(celeba / "img_align_celeba" / name))
        assert torch.equal(image, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_images_have_the_requested_size(celeba: Path, root: Path) -> None:
    assert load(root, 32).input_dim == (3, 32, 32)
    assert load(root, 148).input_dim == (3, 148, 148)
    with pytest.raises(ValueError, match="image_size is 0"):
        load(root, 0)


def test_model_selection_uses_the_official_validation_split(celeba: Path, root: Path) -> None:
    data = load(root)
    held_out = data.with_validation_as_test()
    assert held_out.test_images is not data.test_images
    assert len(held_out.test_images) == 2
    assert len(held_out.train_images) == len(data.train_images) == 8


@pytest.mark.filterwarnings("default::hgmvae_bench.data.IncompleteDataWarning")
def test_a_part_of_the_images_loads_with_a_warning(celeba: Path, root: Path) -> None:
    with pytest.warns(IncompleteDataWarning, match="12 images, but CelebA has 202,599") as caught:
        load(root)
    assert caught[0].filename == __file__


def test_the_error_for_missing_data_says_how_to_get_it(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert str(root / "celeba/list_eval_partition.txt") in message
    assert "img_align_celeba/{000001,…,202599}.jpg" in message
    assert "1.4 GB" in message
    assert not list(root.iterdir())


def test_a_partition_file_alone_is_not_enough(celeba: Path, root: Path) -> None:
    (celeba / "img_align_celeba").rename(celeba / "elsewhere")
    with pytest.raises(DataError, match="img_align_celeba: there is no such folder"):
        load(root)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", "line 2 is '000002.jpg 3'"),
        ("000001.jpg\n", "line 1"),
        ("../../secret.jpg 0\n", "line 1"),
        ("000001.jpg 0\n000002.jpg 2\n", "no image is in its validation split"),
        ("", "no image is in its train split"),
        ("é 0\n", "cannot be read"),
    ],
)
def test_a_damaged_partition_file_is_named(
    celeba: Path, root: Path, content: str, fault: str
) -> None:
    (celeba / "list_eval_partition.txt").write_text(content)
    with pytest.raises(DataError, match=fault) as caught:
        load(root)
    assert str(celeba / "list_eval_partition.txt") in str(caught.value)


def test_a_missing_image_is_named(celeba: Path, root: Path) -> None:
    missing = celeba / "img_align_celeba" / "000007.jpg"
    missing.unlink()
    with pytest.raises(DataError, match="No such file") as caught:
        load(root)
    assert str(missing) in str(caught.value)
    report = CELEBA.check(root, lambda *_: None)
    assert [file.path for file in report.files if file.state == "missing"] == [missing]


def test_an_image_of_another_size_is_named(celeba: Path, root: Path, paint) -> None:
    paint(celeba / "img_align_celeba" / "000005.jpg", 5, size=(218, 178))
    with pytest.raises(DataError, match=r"000005\.jpg.*218×178.*178×218"):
        load(root)


def test_check_reports_every_damaged_image(celeba: Path, root: Path) -> None:
    images = celeba / "img_align_celeba"
    content = (images / "000002.jpg").read_bytes()
    (images / "000002.jpg").write_bytes(content[: len(content) // 2])
    (images / "000009.jpg").write_bytes(b"")
    reported: list[tuple[str, int, int | None]] = []
    report = CELEBA.check(root, lambda *progress: reported.append(progress))
    assert reported[-1] == ("decoding CelebA", 12, 12)
    faults = {file.path.name: file.detail for file in report.files if file.state == "damaged"}
    assert set(faults) == {"list_eval_partition.txt", "000002.jpg", "000009.jpg"}
    assert "truncated" in faults["000002.jpg"]
    assert "not the published file" in faults["list_eval_partition.txt"]


def test_check_reports_missing_files(root: Path) -> None:
    report = CELEBA.check(root, lambda *_: None)
    assert [file.state for file in report.files] == ["missing"]


@pytest.fixture
def published(celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that replaces Google Drive; torchvision has the checksums of its files."""
    drive = tmp_path / "drive"
    drive.mkdir()
    with zipfile.ZipFile(drive / "img_align_celeba.zip", "w") as archive:
        for image in sorted((celeba / "img_align_celeba").iterdir()):
            archive.write(image, f"img_align_celeba/{image.name}")
    partition = "list_eval_partition.txt"
    (celeba / partition).rename(drive / partition)
    monkeypatch.setattr(
        datasets.CelebA,
        "file_list",
        [
            (
                path.name,
                hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
                path.name,
            )
            for path in drive.iterdir()
        ],
    )
    monkeypatch.setattr("hgmvae_bench.data.celeba.COUNT", 12)
    return drive


def test_without_gdown_the_error_says_how_to_get_the_files(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    root = tmp_path / "fresh"
    with pytest.raises(DataError) as caught:
        CELEBA.fetch(root, lambda *_: None)
    message = str(caught.value)
    for part in ("gdown", "img_align_celeba.zip", str(root / "celeba"), "1.4 GB", "https://mmlab"):
        assert part in message
    assert not list((root / "celeba").iterdir())


def gdown(drive: Path) -> types.ModuleType:
    """gdown, with a folder instead of Google Drive."""
    module = types.ModuleType("gdown")

    def download(*, output: str, **options: object) -> None:
        Path(output).write_bytes((drive / str(options["id"])).read_bytes())

    module.download = download  # type: ignore[attr-defined]
    return module


def test_fetching_through_torchvision_and_gdown(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", gdown(published))
    root = tmp_path / "fresh"
    CELEBA.fetch(root, lambda *_: None)
    assert sorted(path.name for path in (root / "celeba").iterdir()) == [
        "img_align_celeba",
        "list_eval_partition.txt",
    ]
    assert CELEBA.check(root, lambda *_: None).complete
    assert load(root).train_images.shape == (8, 3, 64, 64)
    # All files exist, so nothing is downloaded again.
    monkeypatch.setitem(sys.modules, "gdown", None)
    CELEBA.fetch(root, lambda *_: None)


def test_an_error_page_of_google_drive_is_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (published / "img_align_celeba.zip").write_bytes(b"<html>Quota exceeded</html>")
    monkeypatch.setitem(sys.modules, "gdown", gdown(published))
    root = tmp_path / "fresh"
    with pytest.raises(DataError, match=r"img_align_celeba.zip cannot be downloaded .* by hand"):
        CELEBA.fetch(root, lambda *_: None)
    assert [path.name for path in (root / "celeba").iterdir()] == ["list_eval_partition.txt"]


def test_files_put_there_by_hand_are_verified_and_unpacked(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    root = tmp_path / "fresh"
    (root / "celeba").mkdir(parents=True)
    for path in published.iterdir():
        (root / "celeba" / path.name).write_bytes(path.read_bytes())
    CELEBA.fetch(root, lambda *_: None)
    assert CELEBA.check(root, lambda *_: None).complete
    assert (root / "celeba" / "img_align_celeba.zip").exists()


def test_an_incomplete_folder_is_not_replaced(published: Path, celeba: Path, root: Path) -> None:
    (celeba / "list_eval_partition.txt").write_bytes(
        (published / "list_eval_partition.txt").read_bytes()
    )
    (celeba / "img_align_celeba" / "000001.jpg").unlink()
    with pytest.raises(DataError, match="img_align_celeba exists but is incomplete"):
        CELEBA.fetch(root, lambda *_: None)
    assert len(list((celeba / "img_align_celeba").iterdir())) == 11


def test_a_wrong_file_put_there_by_hand_is_named(published: Path, tmp_path: Path) -> None:
    root = tmp_path / "fresh"
    (root / "celeba").mkdir(parents=True)
    wrong = root / "celeba" / "list_eval_partition.txt"
    wrong.write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match="is not the published file") as caught:
        CELEBA.fetch(root, lambda *_: None)
    assert str(wrong) in str(caught.value)
