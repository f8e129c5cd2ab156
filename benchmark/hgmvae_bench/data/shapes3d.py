"""3D Shapes: rendered rooms with an object, in the official HDF5 file (needs h5py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgmvae_bench.data import DataError
from hgmvae_bench.data.factored_file import BLOCK, N_TEST, SIDE, FactoredFile, FileContents
from hgmvae_bench.data.source import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

FILE = "3dshapes.h5"
NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
SIZES = (10, 10, 10, 8, 4, 15)
RANGES = ((0, 0.9), (0, 0.9), (0, 0.9), (0.75, 1.25), (0, 3), (-30, 30))
"""Smallest and largest value of each factor in the file; values are evenly spaced."""
N_IMAGES = 480_000
TOLERANCE = 1e-3
"""Maximum distance of a value from an exact one, in steps of the factor."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[FileContents]:
    """Open the file; images are read block by block.

    Raises:
        DataError: if h5py is not installed.
        OSError, KeyError, RuntimeError: if it is damaged.
        ValueError: if its arrays have another shape or type.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "3D Shapes is an HDF5 file: install h5py to read it, with "
            "`pip install 'hgmvae-bench[shapes3d]'`"
        ) from error
    with h5py.File(path) as file:
        factors = _factors(file["labels"][:])
        images = file["images"]
        shape = (len(factors), SIDE, SIDE, 3)
        if images.shape != shape or images.dtype != "uint8":
            raise ValueError(f"images is {images.dtype} {images.shape}, expected uint8 {shape}")
        yield FileContents(factors, _blocks(images))


def _factors(labels: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Convert labels (N, 6) in the units of the file to value numbers."""
    import numpy as np

    if labels.ndim != 2 or labels.shape[1] != len(SIZES) or len(labels) == 0:
        raise ValueError(f"labels is {labels.shape}, expected (N, {len(SIZES)})")
    low, high = np.array(RANGES).T
    steps = (labels - low) / (high - low) * (np.array(SIZES) - 1)
    factors = np.rint(steps)
    is_inside = (factors >= 0) & (factors < SIZES)
    if not (is_inside & (np.abs(steps - factors) < TOLERANCE)).all():
        raise ValueError("labels has values that 3D Shapes does not have")
    numbers: npt.NDArray[np.int64] = factors.astype(np.int64)
    return numbers


def _blocks(images: Any) -> Iterator[Pixels]:
    for start in range(0, len(images), BLOCK):
        yield images[start : start + BLOCK].transpose(0, 3, 1, 2)


SHAPES3D = FactoredFile(
    title="3D Shapes",
    reference="Burgess & Kim 2018, 3D Shapes",
    channels=3,
    reconstruction_loss="mse",
    n_train_images=N_IMAGES - N_TEST,
    source=Source(
        name="shapes3d",
        address="https://github.com/google-deepmind/3d-shapes",
        layout=f"3dshapes/{FILE}",
        size="255 MB",
    ),
    file=f"3dshapes/{FILE}",
    url=f"https://storage.googleapis.com/3d-shapes/{FILE}",
    md5="099a2078d58cec4daad0702c55d06868",
    factor_names=NAMES,
    factor_sizes=SIZES,
    class_factor=4,
    class_names=("cube", "cylinder", "sphere", "pill"),
    open_file=open_hdf5,
    read_errors=(OSError, KeyError, ValueError, RuntimeError),
)
