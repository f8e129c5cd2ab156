from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgmvae_bench.data import DataError, ImageData
from hgmvae_bench.data.catalogue import check, fetch, resolve_dataset
from hgmvae_bench.data.splits import share
from hgmvae_bench.grid import parse_grid
from hgmvae_bench.plugins.protocols import UnknownNameError


def load(root: Path, name: str = "folder:pictures", image_size: int = 32) -> ImageData:
    return resolve_dataset(name).load(root, image_size=image_size)


@pytest.fixture
def classes(root: Path, paint) -> Path:
    """Ten cats and five dogs, with files beside them that are not images."""
    folder = root / "pictures"
    for number in range(10):
        paint(folder / "cat" / f"{number}.png", number)
    for number in range(5):
        paint(folder / "dog" / "puppies" / f"{number}.JPG", 100 + number)
    (folder / "README.txt").write_text("pictures of mine")
    (folder / ".thumbnails").mkdir()
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "._0.png")
    return folder


def test_classes_are_split_in_their_proportions(classes: Path, root: Path) -> None:
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert data.train_labels.tolist() == [0] * 8 + [1] * 4
    assert data.test_labels.tolist() == [0, 0, 1]
    assert data.train_images.shape == (12, 3, 32, 32)
    # Every image once, with unchanged pixels.
    painted = [np.asarray(Image.open(path)) for path in sorted(classes.glob("cat/[0-9].png"))]
    cats = torch.cat([data.train_images[:8], data.test_images[:2]]).permute(0, 2, 3, 1).numpy()
    assert Counter(cat.tobytes() for cat in cats) == Counter(cat.tobytes() for cat in painted)


def test_a_new_image_moves_at_most_one_other_between_the_splits(
    classes: Path, root: Path, paint
) -> None:
    def test_images() -> list[bytes]:
        return [image.numpy().tobytes() for image in load(root).test_images]

    before = test_images()
    paint(classes / "dog" / "one-more.png", 200)
    after = test_images()
    assert len(set(before) & set(after)) >= len(before) - 1


def test_images_without_class_folders_have_no_labels(root: Path, paint) -> None:
    for number in range(6):
        paint(root / "pictures" / f"{number}.bmp", number)
    data = load(root)
    assert data.train_labels is None
    assert data.test_labels is None
    assert data.class_names == ()
    assert (len(data.train_images), len(data.test_images)) == (5, 1)


@pytest.mark.parametrize("with_classes", [True, False])
def test_sub_folders_give_the_split(root: Path, paint, with_classes: bool) -> None:
    counts = {"train": 3, "test": 2, "val": 1}
    for split, count in counts.items():
        for label in ("a", "b") if with_classes else ("",):
            for number in range(count):
                paint(root / "pictures" / split / label / f"{number}.png", number)
    data = load(root)
    assert data.validation_images is not None
    n = 2 if with_classes else 1
    assert len(data.train_images) == 3 * n
    assert len(data.test_images) == 2 * n
    assert len(data.validation_images) == n
    if with_classes:
        assert data.train_labels is not None
        assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.class_names == ("a", "b")
    else:
        assert data.train_labels is None


def test_splits_with_different_classes_are_refused(root: Path, paint) -> None:
    for path in ("train/a", "train/b", "test/a"):
        paint(root / "pictures" / path / "0.png", 0)
    with pytest.raises(DataError, match=r"train: does not have the classes .* differ in b"):
        load(root)


@pytest.mark.parametrize("odd", ["extra", "validation"])
def test_another_folder_beside_the_splits_is_refused(root: Path, paint, odd: str) -> None:
    for split in ("train", "test", "val", odd):
        paint(root / "pictures" / split / "0.png", 0)
    with pytest.raises(DataError, match="is beside train and test"):
        load(root)


def test_an_empty_class_folder_is_named(classes: Path, root: Path) -> None:
    (classes / "fish").mkdir()
    (classes / "fish" / "none.txt").write_text("no fish")
    with pytest.raises(DataError, match="this class folder has no images") as caught:
        load(root)
    assert str(classes / "fish") in str(caught.value)
    assert not list(root.glob(".*"))


def test_a_class_with_one_image_cannot_be_split(classes: Path, root: Path, paint) -> None:
    paint(classes / "fish" / "0.png", 0)
    with pytest.raises(DataError, match="fish: has a single image"):
        load(root)


def test_images_beside_class_folders_are_refused(classes: Path, root: Path, paint) -> None:
    paint(classes / "loose.png", 0)
    with pytest.raises(DataError, match=r"has images beside class folders .loose\.png"):
        load(root)


def test_a_missing_or_empty_folder_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder") as caught:
        load(root)
    assert str(root / "pictures") in str(caught.value)
    (root / "pictures").mkdir()
    with pytest.raises(DataError, match="has no images"):
        load(root)
    with pytest.raises(DataError, match="needs a path"):
        load(root, "folder")


def test_mixed_sizes_need_the_option(classes: Path, root: Path, paint) -> None:
    odd = paint(classes / "cat" / "9.png", 9, size=(64, 48))
    with pytest.raises(DataError, match="has 64×48 pixels, expected 32×32, the size of") as caught:
        load(root)
    assert str(odd) in str(caught.value)
    assert "sizes=mixed" in str(caught.value)
    assert not list(root.glob(".*/*.npy"))
    assert load(root, "folder:pictures?sizes=mixed").train_images.shape == (12, 3, 32, 32)


def test_the_longer_side_is_cropped_about_the_centre(root: Path) -> None:
    folder = root / "pictures"
    folder.mkdir()
    # Red, a green centre square, blue.
    image = Image.new("RGB", (40, 20), "red")
    image.paste("lime", (10, 0, 30, 20))
    image.paste("blue", (30, 0, 40, 20))
    for number in range(2):
        image.save(folder / f"{number}.png")
    data = load(root, image_size=10)
    # The outermost columns average over a little of what was cut off.
    inner = data.train_images[0, :, :, 1:-1].flatten(1)
    assert inner.tolist() == [[0] * 80, [255] * 80, [0] * 80]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_every_8_bit_mode_becomes_colour(root: Path, mode: str, colour, expected) -> None:
    folder = root / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.new(mode, (8, 8), colour).save(
            folder / f"{number}.{'tif' if mode == 'CMYK' else 'png'}"
        )
    data = load(root, image_size=8)
    assert data.train_images[0, :, 4, 4].tolist() == list(expected)


def test_grey_is_one_channel(classes: Path, root: Path) -> None:
    data = load(root, "folder:pictures?channels=1")
    assert data.input_dim == (1, 32, 32)
    colour = load(root).train_images[0].float()
    luma = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert (data.train_images[0, 0] - luma).abs().max() <= 1


def test_photographs_are_rotated_upright(root: Path) -> None:
    folder = root / "pictures"
    folder.mkdir()
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for number in range(2):
        image.save(folder / f"{number}.png", exif=exif)
    data = load(root, image_size=8)
    assert data.train_images[0, 0, 0, 0] == 0
    assert data.train_images[0, 0, 7, 0] == 255


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda content: b"", "cannot identify image file"),
        (lambda content: b"<html>404</html>", "cannot identify image file"),
        (lambda content: content[:100] + bytes(50) + content[150:], "cannot be read as an image"),
    ],
    ids=["cut off", "empty", "another format", "overwritten"],
)
def test_a_damaged_image_is_named_and_nothing_is_written(
    classes: Path, root: Path, damage, fault: str
) -> None:
    path = classes / "dog" / "puppies" / "3.JPG"
    path.rename(path.with_suffix(".png"))
    path = path.with_suffix(".png")
    Image.open(classes / "cat" / "0.png").save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=fault) as caught:
        load(root)
    assert str(path) in str(caught.value)
    assert not [file for file in root.glob(".hgmvae-bench-cache/**/*") if file.suffix != ".lock"]
    report = check("folder:pictures", root)
    assert [file.path for file in report.files] == [path]


def save_16_bits(path: Path, *values: int) -> None:
    """Save a 16-bit greyscale PNG of 32×32 pixels with these values in its first row."""
    pixels = np.full((32, 32), 40_000, dtype=np.uint16)
    pixels[0, : len(values)] = values
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("name", ["0.png", "9.png"])
def test_a_16_bit_image_is_refused_with_the_option_that_reads_it(
    classes: Path, root: Path, name: str
) -> None:
    """Whether it is the first image, which gives the size, or another."""
    save_16_bits(classes / "cat" / name)
    with pytest.raises(DataError, match=rf"cat/{name}: has more than 8 bits per channel") as error:
        load(root)
    assert "convert it to 8 bits, or add bits=16" in str(error.value)
    for advice in ("sizes=mixed", "undamaged", "one folder per class"):
        assert advice not in str(error.value)
    (status,) = check("folder:pictures", root).files
    assert status.path == classes / "cat" / name


def test_bits_16_scales_16_bit_greyscale_and_leaves_8_bit_images(classes: Path, root: Path) -> None:
    for file in (classes / "cat").glob("*.png"):
        save_16_bits(file, 0, 128, 129, 257, 32_767, 65_406, 65_407, 65_535)
    data = load(root, "folder:pictures?bits=16&channels=1")
    # v / 257, rounded.
    assert data.train_images[0, 0, 0, :9].tolist() == [0, 0, 1, 1, 127, 254, 255, 255, 156]
    dogs = load(root, "folder:pictures/dog?channels=1")
    assert {image.numpy().tobytes() for image in data.train_images[8:]} <= {
        image.numpy().tobytes() for image in torch.cat([dogs.train_images, dogs.test_images])
    }
    assert check("folder:pictures?bits=16", root).complete


def test_bits_16_refuses_images_with_32_bits(classes: Path, root: Path) -> None:
    Image.fromarray(np.full((32, 32), 0.5, dtype=np.float32)).save(classes / "cat" / "5.tif")
    with pytest.raises(DataError, match=r"cat/5.tif: has more than 16 bits per channel"):
        load(root, "folder:pictures?bits=16")


def test_the_options_enter_the_run_key(tiny_text: str) -> None:
    def identity(name: str) -> str:
        text = tiny_text.replace("[digits]", f"['{name}']")
        return next(iter(parse_grid(text, "g.yaml").cells)).identity

    assert identity("folder:p?bits=16") != identity("folder:p")
    # As it was before the option existed.
    assert identity("folder:p?channels=1") == "b816764262ba1c24"


def test_options_are_part_of_the_name(root: Path) -> None:
    plugin = resolve_dataset("folder:my pictures?channels=1&image-size=48&sizes=mixed&loss=bce")
    assert plugin.title == "my pictures"
    assert plugin.channels == 1
    assert plugin.image_size == 48
    assert plugin.reconstruction_loss == "bce"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("folder:p?chanels=1", UnknownNameError, "did you mean channels"),
        ("folder:p?channels=2", ValueError, "option channels of folder:p: expected 1 or 3"),
        ("folder:p?image-size=0", ValueError, "an integer above 0"),
        ("folder:p?image-size=big", ValueError, "an integer above 0"),
        ("folder:p?sizes=", ValueError, "expected same or mixed"),
        ("folder:", ValueError, "needs the path"),
        ("folder:?channels=1", ValueError, "needs the path"),
    ],
)
def test_an_invalid_option_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_dataset(name)


def test_a_path_is_absolute_or_starts_at_home_or_the_data_folder(
    classes: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root))
    expected = load(root).digest
    assert load(root / "elsewhere", f"folder:{classes}").digest == expected
    assert load(root / "elsewhere", "folder:~/pictures").digest == expected


def test_fetching_a_missing_folder_is_refused(classes: Path, root: Path) -> None:
    fetch("folder:pictures", root)
    with pytest.raises(DataError, match="does not exist and cannot be downloaded"):
        fetch("folder:absent", root)


def test_check_decodes_every_image_and_writes_nothing(classes: Path, root: Path) -> None:
    report = check("folder:pictures", root)
    assert report.complete
    assert report.files[0].detail == "all 15 images decode"
    assert not list(root.glob(".*")), "checking writes nothing"


@pytest.mark.shared_data
def test_real_photographs_load_unchanged(real_data: Path, tmp_path: Path) -> None:
    archive = real_data / "cifar10-jpeg.tar.gz"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    root = tmp_path / "data"
    with tarfile.open(archive) as tar:
        some = [m for m in tar if m.name.endswith(tuple(f"/00{n:02}.jpg" for n in range(50)))]
        tar.extractall(root / "cifar10-jpeg", members=some, filter="data")
    data = load(root, "folder:cifar10-jpeg")
    assert data.train_images.shape == (500, 3, 32, 32)
    assert data.test_images.shape == (500, 3, 32, 32)
    assert data.test_labels is not None
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.class_names[0] == "airplane"
    picture = Image.open(root / "cifar10-jpeg" / "test" / "airplane" / "0000.jpg")
    assert np.array_equal(data.test_images[0].permute(1, 2, 0).numpy(), np.asarray(picture))
    assert load(root, "folder:cifar10-jpeg").digest == data.digest


def test_the_home_folder_of_an_unknown_user_is_refused(root: Path, cli) -> None:
    with pytest.raises(ValueError, match=r"folder:~nobody-such/x: .* absolute path"):
        resolve_dataset("folder:~nobody-such/x")
    outcome = cli("data", "check", "folder:~nobody-such/x")
    assert outcome.exit_status == 2
    assert "~nobody-such" in outcome.stderr


def test_a_cache_in_the_home_folder_of_an_unknown_user_is_refused(
    classes: Path, root: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HGMVAE_BENCH_CACHE", "~nobody-such/x")
    with pytest.raises(DataError, match=r"~nobody-such/x: .* absolute path"):
        load(root)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (7, 1), (8, 2), (10, 2), (13, 3)])
def test_a_fifth_is_rounded_to_the_nearest_number_of_images(count: int, expected: int) -> None:
    assert share(count, 0.2) == expected
