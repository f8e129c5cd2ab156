"""3D Chairs: renderings of 1,393 chairs from 62 directions, in the layout of its authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hgmvae_bench.data import ImageData, cache
from hgmvae_bench.data.download import fetch_file, refuse_to_replace, unpack
from hgmvae_bench.data.images import (
    ImageFiles,
    Rule,
    Split,
    SplitName,
    common_size,
)
from hgmvae_bench.data.source import (
    DataFileError,
    DatasetReport,
    Progress,
    Source,
    data_error,
    warn_if_incomplete,
)
from hgmvae_bench.data.splits import share, shuffled
from hgmvae_bench.plugins.protocols import ReconstructionLoss

FOLDER, RENDERS = "rendered_chairs", "renders"
ARCHIVE = f"{FOLDER}.tar"
COUNT = 1_393 * 62
HELD_OUT = 0.1
N_TRAIN, N_TEST = 1_115 * 62, 139 * 62

SOURCE = Source(
    name="3d-chairs",
    address="https://www.di.ens.fr/willow/research/seeing3Dchairs/",
    layout=f"{FOLDER}/CHAIR/{RENDERS}/*.png, 1,393 chairs with 62 views each",
    size="about 3 GB",
)


@dataclass(frozen=True)
class Chairs:
    """86,366 renderings of chairs on white, resized.

    There is no official split. Chairs are sorted by a hash of their identity (`splits.shuffled`):
    the first tenth is the test split, the next tenth the validation split, and the others are for
    training. All views of a chair are in one split, so that a model is tested on new chairs. There
    are no classes.

    Attributes:
        url: archive of the authors, who publish no checksum.
    """

    title: str = "3D Chairs"
    reference: str = "Aubry, Maturana, Efros, Russell & Sivic 2014, Seeing 3D chairs"
    image_size: int = 64
    channels: int = 3
    n_train_images: int = N_TRAIN
    n_test_images: int = N_TEST
    reconstruction_loss: ReconstructionLoss = "mse"
    url: str = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar"
    source: Source = SOURCE

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read ``root/rendered_chairs`` through the cache.

        Raises:
            hgmvae_bench.data.DataError: if there are no chairs, a chair has no image, or an
                image is damaged or of another size than the first.
            ValueError: if ``image_size`` is not positive.
        """
        try:
            images = self.image_files(root, image_size)
        except DataFileError as error:
            raise data_error(self.title, error.file, self.source, root) from error
        warn_if_incomplete(self.title, images.folder, images.count, COUNT)
        return cache.load(images, root)

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download the archive of the authors and unpack it, if the data is incomplete.

        Raises:
            hgmvae_bench.data.DataError: if that fails.
        """
        try:
            if self.image_files(root, self.image_size).count == COUNT:
                return
        except DataFileError:
            pass
        refuse_to_replace(root / FOLDER)
        archive = root / ARCHIVE
        downloaded = fetch_file(
            [self.url],
            archive,
            md5=None,
            progress=progress,
            by_hand=f"without network, put {ARCHIVE} ({self.source.size}) into {root} and fetch "
            "again, which unpacks it",
        )
        unpack(archive, root, FOLDER, progress)
        if downloaded:
            archive.unlink()

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Count the images and decode each."""
        try:
            images = self.image_files(root, self.image_size)
        except DataFileError as error:
            return DatasetReport(self.title, (error.file,), self.source.advice(root))
        files = cache.check(images, root, progress, expected=COUNT)
        return DatasetReport(self.title, tuple(files), self.source.advice(root))

    def image_files(self, root: Path, image_size: int) -> ImageFiles:
        """The image files, split by chair.

        Raises:
            DataFileError: if there are too few chairs, or one has no images.
        """
        folder = root / FOLDER
        if not folder.is_dir():
            raise DataFileError(folder, "missing", "there is no such folder")
        views = {chair.name: _views(chair) for chair in sorted(folder.iterdir()) if chair.is_dir()}
        held_out = share(len(views), HELD_OUT)
        if len(views) < 2 * held_out + 1:
            detail = f"{len(views)} chairs are too few for training, validation and test"
            raise DataFileError(folder, "damaged", detail)
        order = shuffled(views)
        chairs: dict[SplitName, list[str]] = {
            "test": order[:held_out],
            "validation": order[held_out : 2 * held_out],
            "train": order[2 * held_out :],
        }
        splits = {
            split: Split([view for chair in sorted(names) for view in views[chair]])
            for split, names in chairs.items()
        }
        size, first = common_size(folder, splits)
        return ImageFiles(
            title=self.title,
            slug="3d-chairs",
            folder=folder,
            splits=splits,
            rule=Rule(image_size, self.channels, size=size, size_of=first),
        )


def _views(chair: Path) -> list[str]:
    """Return the images of one chair, relative to the dataset's folder.

    Raises:
        DataFileError: if it has none.
    """
    renders = chair / RENDERS
    views = sorted(renders.glob("*.png"))
    if not views:
        raise DataFileError(renders, "damaged", "this chair has no images")
    return [f"{chair.name}/{RENDERS}/{view.name}" for view in views]


CHAIRS = Chairs()
