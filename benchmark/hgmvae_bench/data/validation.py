"""A dataset for choosing between models: ``validation:NAME``, held-out images as its test split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hgmvae_bench.data import DataError, ImageData, catalogue
from hgmvae_bench.data.source import DatasetReport, Progress
from hgmvae_bench.plugins.protocols import ReconstructionLoss


@dataclass(frozen=True)
class Validation:
    """Another dataset without its test images (`ImageData.with_validation_as_test`).

    Its files are those of the other dataset, so that fetching and checking mean them.

    Attributes:
        name: the other dataset's registered name, with its argument if it takes one.
        image_size, channels, reconstruction_loss: the other dataset's.
    """

    title: str = "Validation split"
    reference: str = "another dataset's held-out images: validation:NAME"
    name: str | None = None
    image_size: int = 32
    channels: int = 1
    reconstruction_loss: ReconstructionLoss = "bce"

    def with_argument(self, argument: str) -> Validation:
        """The validation split of the dataset called ``argument``.

        Raises:
            UnknownNameError: if there is no such dataset.
            ValueError: if no name is given, or it is of a validation split itself.
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
        """Read the other dataset and put its held-out images where the test images stood.

        Raises:
            DataError: if the other dataset is absent or damaged, or none is named.
        """
        dataset = catalogue.resolve_dataset(self._other())
        return dataset.load(root, image_size=image_size).with_validation_as_test()

    def fetch(self, root: Path, progress: Progress) -> None:
        """Bring what is missing of the other dataset below ``root``.

        Raises:
            DataError: if that fails; the message says what to do by hand.
        """
        catalogue.fetch(self._other(), root, progress)

    def check(self, root: Path, progress: Progress) -> DatasetReport:
        """Look at the other dataset's files.

        Raises:
            DataError: if no dataset is named.
        """
        return catalogue.check(self._other(), root, progress)

    def _other(self) -> str:
        if self.name is None:
            raise DataError("validation: expected a dataset's name, as in validation:mnist")
        return self.name


VALIDATION = Validation()
