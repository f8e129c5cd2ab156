"""dSprites: binary images of three shapes, in the official NumPy archive.

The archive also contains pickled metadata, which in general can run code when it is read. It is not
read: the factors are in arrays.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgmvae_bench.data.factored_file import BLOCK, N_TEST, SIDE, FactoredFile, FileContents
from hgmvae_bench.data.source import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
SIZES = (3, 6, 40, 32, 32)
N_IMAGES = 737_280


@contextmanager
def open_npz(path: Path) -> Iterator[FileContents]:
    """Open the archive; images are unpacked block by block.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError: if it is damaged.
        ValueError: if its arrays have another shape or type.
    """
    with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as images:
        factors = _factors(archive)
        shape = (len(factors), SIDE, SIDE)
        _read_header(images, shape)
        yield FileContents(factors, _blocks(images, len(factors)))


def _factors(archive: zipfile.ZipFile) -> npt.NDArray[np.int64]:
    """Read the factors (N, 5), without the colour, which has a single value."""
    import numpy as np

    with archive.open("latents_classes.npy") as file:
        classes = np.lib.format.read_array(file, allow_pickle=False)
    if classes.dtype != np.int64 or classes.ndim != 2 or classes.shape[1] != 1 + len(SIZES):
        raise ValueError(
            f"latents_classes is {classes.dtype} {classes.shape}, expected int64 (N, 6)"
        )
    factors = np.ascontiguousarray(classes[:, 1:])
    if len(factors) == 0 or factors.min() < 0 or (factors.max(axis=0) >= SIZES).any():
        raise ValueError(f"latents_classes has values outside the sizes {SIZES}")
    return factors


def _read_header(file: Any, shape: tuple[int, ...]) -> None:
    """Read the header of a .npy file and compare it with the expected one."""
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    found, is_fortran, dtype = readers[npy.read_magic(file)](file)
    if found != shape or is_fortran or dtype != "uint8":
        raise ValueError(f"imgs is {dtype} {found}, expected uint8 {shape}")


def _blocks(file: Any, count: int) -> Iterator[Pixels]:
    """Yield blocks (B, 1, 64, 64) with 0 and 255 in place of 0 and 1."""
    import numpy as np

    for start in range(0, count, BLOCK):
        n_images = min(BLOCK, count - start)
        content = file.read(n_images * SIDE * SIDE)
        block = np.frombuffer(content, dtype=np.uint8).reshape(n_images, 1, SIDE, SIDE)
        if block.max() > 1:
            raise ValueError("imgs has values above 1")
        yield block * np.uint8(255)


DSPRITES = FactoredFile(
    title="dSprites",
    reference="Matthey, Higgins, Hassabis & Lerchner 2017, dSprites",
    channels=1,
    reconstruction_loss="bce",
    n_train_images=N_IMAGES - N_TEST,
    source=Source(
        name="dsprites",
        address="https://github.com/google-deepmind/dsprites-dataset",
        layout=f"dsprites/{FILE}",
        size="26 MB",
    ),
    file=f"dsprites/{FILE}",
    url=f"https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/master/{FILE}",
    md5="7da33b31b13a06f4b04a70402ce90c2e",
    factor_names=("shape", "scale", "orientation", "x", "y"),
    factor_sizes=SIZES,
    class_factor=0,
    class_names=("square", "ellipse", "heart"),
    open_file=open_npz,
    read_errors=(zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError),
)
