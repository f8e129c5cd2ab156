from pathlib import Path

import pytest

from hgmvae_bench.analysis.figures import Results


@pytest.fixture
def trained(tiny_run):
    """The tiny grid, really run."""
    return tiny_run / "r"


@pytest.fixture
def results(trained):
    return Results.open(trained, data=Path())
