from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hgmvae_bench.data import DataError, ImageData, IncompleteDataWarning
from hgmvae_bench.data.chairs import CHAIRS
from hgmvae_bench.data.splits import shuffled

pytestmark = pytest.mark.filterwarnings("ignore::hgmvae_bench.data.IncompleteDataWarning")


def load(root: Path, image_size: int = 64) -> ImageData:
    return CHAIRS.load(root, image_size=image_size)


def chairs_in(images) -> list[int]:
    """The number of the chair in each image: its red value."""
    return images[:, 0, 0, 0].tolist()


def test_a_chair_is_in_one_split_with_all_its_views(chairs: Path, root: Path) -> None:
    data = load(root)
    assert data.validation_images is not None
    assert data.train_images.shape == (24, 3, 64, 64)
    train, validation, test = (
        chairs_in(images)
        for images in (data.train_images, data.validation_images, data.test_images)
    )
    assert [len(set(split)) for split in (train, validation, test)] == [8, 1, 1]
    assert sorted(train + validation + test) == sorted([*range(10)] * 3)
    assert data.test_images[:, 1, 0, 0].tolist() == [0, 1, 2]
    assert data.train_labels is None


def test_the_split_depends_only_on_the_identities(chairs: Path, root: Path) -> None:
    test = chairs_in(load(root).test_images)
    assert test == [2, 2, 2]
    # If a chair is removed, no other moves from training to test.
    for view in (chairs / f"{0xABC:032x}" / "renders").iterdir():
        view.unlink()
    (chairs / f"{0xABC:032x}" / "renders").rmdir()
    (chairs / f"{0xABC:032x}").rmdir()
    assert chairs_in(load(root).test_images) == test


def test_the_order_never_changes() -> None:
    assert shuffled("abcdef") == shuffled("fedcba") == list("dabfec")


def test_images_have_the_requested_size(chairs: Path, root: Path) -> None:
    assert load(root, 32).input_dim == (3, 32, 32)


@pytest.mark.filterwarnings("default::hgmvae_bench.data.IncompleteDataWarning")
def test_a_part_of_the_images_loads_with_a_warning(chairs: Path, root: Path) -> None:
    with pytest.warns(IncompleteDataWarning, match="30 images, but 3D Chairs has 86,366"):
        load(root)


def test_the_error_for_missing_data_says_how_to_get_it(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert f"{root / 'rendered_chairs'}: there is no such folder" in message
    assert "rendered_chairs/CHAIR/renders/*.png" in message
    assert "data fetch 3d-chairs" in message


def test_a_chair_without_images_is_named(chairs: Path, root: Path) -> None:
    renders = chairs / f"{0xABC:032x}" / "renders"
    for view in renders.iterdir():
        view.unlink()
    with pytest.raises(DataError, match="this chair has no images") as caught:
        load(root)
    assert str(renders) in str(caught.value)


def test_too_few_chairs_are_refused(root: Path, paint) -> None:
    for chair in "ab":
        paint(root / "rendered_chairs" / chair / "renders" / "image.png", 0)
    with pytest.raises(DataError, match="2 chairs are too few"):
        load(root)


def test_an_image_of_another_size_is_named(chairs: Path, root: Path) -> None:
    odd = next((chairs / f"{0xABC + 9:032x}" / "renders").iterdir())
    Image.new("RGB", (300, 300)).save(odd)
    with pytest.raises(DataError, match=r"300×300.*600×600, the size of 0") as c:
        load(root)
    assert str(odd) in str(c.value)


@pytest.fixture
def archive(server, chairs: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The small tree as the authors' archive, on the server."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(chairs, arcname="rendered_chairs")
    server.files["/rendered_chairs.tar"] = buffer.getvalue()
    monkeypatch.setattr("hgmvae_bench.data.chairs.COUNT", 30)
    return buffer.getvalue()


def test_fetch_retries_and_unpacks(server, archive: bytes, tmp_path: Path) -> None:
    root = tmp_path / "fresh"
    dataset = replace(CHAIRS, url=f"{server.url}/rendered_chairs.tar")
    server.break_after = [5000, 5000]
    dataset.fetch(root, lambda *_: None)
    assert server.n_requests == 3
    assert [path.name for path in root.iterdir()] == ["rendered_chairs"]
    assert dataset.check(root, lambda *_: None).complete
    dataset.fetch(root, lambda *_: None)
    assert server.n_requests == 3


def test_an_incomplete_folder_is_not_replaced(
    server, archive: bytes, chairs: Path, root: Path
) -> None:
    next(chairs.glob("*/renders/*.png")).unlink()
    with pytest.raises(DataError, match="incomplete; move it away"):
        replace(CHAIRS, url=f"{server.url}/rendered_chairs.tar").fetch(root, lambda *_: None)
    assert server.n_requests == 0
    assert [path.name for path in root.iterdir()] == ["rendered_chairs"]


def test_check_counts_the_images(chairs: Path, root: Path) -> None:
    report = CHAIRS.check(root, lambda *_: None)
    assert [(file.state, file.detail) for file in report.files] == [
        ("damaged", "30 images, expected 86,366"),
        ("complete", "all 30 images decode"),
    ]


def test_a_truncated_archive_leaves_no_files(archive: bytes, tmp_path: Path) -> None:
    root = tmp_path / "fresh"
    root.mkdir()
    (root / "rendered_chairs.tar").write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataError, match=r"rendered_chairs.tar is damaged .* get the original"):
        CHAIRS.fetch(root, lambda *_: None)
    assert [path.name for path in root.iterdir()] == ["rendered_chairs.tar"]
