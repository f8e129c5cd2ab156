from pathlib import Path

import pytest

from hgmvae_bench.analysis.figures import FigureSource


@pytest.fixture
def trained(tiny_run):
    """The tiny grid, really run."""
    return tiny_run / "r"


@pytest.fixture
def source(trained):
    return FigureSource.open(trained, data=Path())
