"""``init`` writes a grid file, or a package with a model and its test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hgmvae_bench.cli.init import InitError, grid_file, init, plugin_package
from hgmvae_bench.grid import load_grid


def test_the_grid_file_is_a_valid_grid(tmp_path, capsys):
    init(tmp_path / "My Grid.yaml")
    grid = load_grid(str(tmp_path / "My Grid.yaml"))
    assert grid.spec.name == "my-grid"
    assert len(grid.cells) == 6
    assert "hgmvae-bench run --grid" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "grid.yaml").write_text("mine")
    with pytest.raises(InitError, match=r"grid\.yaml.*exists"):
        init(tmp_path / "grid.yaml")
    assert (tmp_path / "grid.yaml").read_text() == "mine"


def test_a_path_without_yaml_is_refused():
    with pytest.raises(InitError, match=r"\.yaml.*--plugin"):
        grid_file(Path("folder"))


@pytest.mark.parametrize("name", ["Free Bits", "1-model", "free_bits", "free--bits", ""])
def test_names_that_cannot_name_a_model_are_refused(name):
    with pytest.raises(InitError, match="free-bits"):
        plugin_package(Path("x") / name if name else Path())


@pytest.mark.slow
def test_the_package_passes_its_own_tests(tmp_path):
    """Its model is trained, scored and refused wrong settings, as its test says."""
    folder = tmp_path / "free-bits"
    init(folder, plugin=True)
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert "2 passed" in outcome.stdout, outcome.stdout + outcome.stderr
