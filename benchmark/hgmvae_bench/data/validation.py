"""``validation:NAME``: a dataset with held-out images as its test split, for model selection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hgmvae_bench.data import DataError, ImageData, catalogue
from hgmvae_bench.data.source import DatasetReport, Progress
from hgmvae_bench.plugins.protocols import ReconstructionLoss


@dataclass(frozen=True)
class Validation:
    """Another dataset without its test images (`ImageData.with_validation_as_test`).

    Fetching and checking apply to the files of the other dataset.

    Attributes:
        name: registered name of the other dataset, with its argument if it has one.
        image_size, channels, reconstruction_loss: those of the other dataset.
    """

    title: str = "Validation split"
    reference: str = "another dataset's held-out images: validation:NAME"
    name: str | None = None
    image_size: int = 32
    channels: int = 1
    reconstruction_loss: ReconstructionLoss = "bce"

    def with_argument(self, argument: str) -> Validation:
        """Return the validation split of the dataset called ``argument``.

        Raises:
            UnknownNameError: if there is no such dataset.
            ValueError: if the name is empty, or that of a validation split.
        """
        if not argument:
            raise ValueError("validation: needs a dataset's name, as in validation:mnist")
        dataset = catalogue.resolve_dataset(argument)
        if isinstance(dataset, Validation):
            raise ValueError(f"'{argument}' is a validation split already")
        return replace(
            self,
            name=argument,
            title=f"{dataset.title} (validation)",
            reference=dataset.reference,
            image_size=dataset.image_size,
            channels=dataset.channels,
            reconstruction_loss=dataset.reconstruction_loss,
        )

    def load(self, root: Path, *, image_size: int) -> ImageData:
        """Read the other dataset and replace its test images by held-out images.

        Raises:
            DataError: if the other dataset is missing or damaged, or none is named.
        """
        dataset = catalogue.resolve_dataset(self._other())
        return dataset.load(root, image_size=image_size).with_validation_as_test()

    def fetch(self, root: Path, progress: Progress) -> None:
        """Download missing files of the other dataset into ``root``.

        Raises:
            DataError: if that fails; the message says how to get the files by hand.
        """
        catalogue.fetch(self._other(), root, progress)

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Check the files of the other dataset.

        Raises:
            DataError: if no dataset is named.
        """
        return catalogue.check(self._other(), root, progress)

    def _other(self) -> str:
        if self.name is None:
            raise DataError("validation: expected a dataset's name, as in validation:mnist")
        return self.name


VALIDATION = Validation()
