"""``init`` writes a grid file, or a package with a model and its test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hgmvae_bench.cli.init import InitError, grid_file, init, plugin_package
from hgmvae_bench.execution.preflight import check_cells
from hgmvae_bench.grid import load_grid, parse_grid


def test_the_grid_file_is_a_valid_grid(tmp_path, capsys):
    init(tmp_path / "My Grid.yaml")
    grid = load_grid(str(tmp_path / "My Grid.yaml"))
    assert grid.spec.name == "my-grid"
    assert len(grid.cells) == 6
    check_cells(grid, grid.cells, {})  # every model can be trained with the grid's settings
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


def test_the_grid_of_a_package_compares_its_model(tmp_path):
    files = plugin_package(tmp_path / "free-bits")
    text = files[tmp_path / "free-bits" / "benchmark.yaml"]
    assert yaml.safe_load(text)["tables"][0]["models"] == ["vae", "beta-4", "free-bits"]
    # The same file with a registered model in its place is valid and can be run.
    grid = parse_grid(text.replace("4, free-bits", "4, vamp"), "benchmark.yaml")
    check_cells(grid, grid.cells, {})


@pytest.mark.slow
@pytest.mark.extended
def test_the_package_is_installed_and_tested_as_its_readme_says(tmp_path):
    """Its model is trained, scored, listed and compared; wrong settings are refused."""
    folder = tmp_path / "free-bits"
    init(folder, plugin=True)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", tmp_path / "site"]
    done = {}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for name, command in {
        "install": ["-m", "pip", "install", *options, "."],
        "test": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        "list": ["-m", "hgmvae_bench", "list", "models"],
        "plan": ["-m", "hgmvae_bench", "plan", "--grid", "benchmark.yaml"],
    }.items():
        outcome = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        done[name] = outcome.stdout
    assert "2 passed" in done["test"]
    assert "free-bits" in done["list"]
    assert "18 missing" in done["plan"]
