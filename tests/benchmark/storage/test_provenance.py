import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from hgmvae_bench.utils.code_version import code_version

CHECKOUT = Path(__file__).parents[3]

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "hgmvae-bench"
version = "1"
[tool.hatch.build.targets.wheel]
packages = ["benchmark/hgmvae_bench"]
[tool.hatch.build.targets.wheel.hooks.custom]
path = "benchmark/hatch_build.py"
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=name", "-c", "user.email=name@example.org"]
    command = ["git", "-C", folder, *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path):
    """A project with the suite's build hook and a small package, outside version control."""
    root = tmp_path / "project"
    package = root / "benchmark" / "hgmvae_bench"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text(PYPROJECT)
    for name in ("hatch_build.py", "hgmvae_bench/utils/code_version.py"):
        shutil.copy(CHECKOUT / "benchmark" / name, root / "benchmark" / name)
    return root


def commit(project):
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "First")
    return git(project, "rev-parse", "HEAD")


def installed_package(project):
    """Build the project's wheel and unpack it outside the project."""
    target = project.parent / "dist"
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", target]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(project.parent / "site-packages")
    return project.parent / "site-packages" / "hgmvae_bench"


@pytest.mark.parametrize("dirty", [False, True])
def test_an_installed_wheel_names_the_commit_that_it_was_built_from(project, dirty):
    head = commit(project)
    if dirty:
        (project / "benchmark" / "hgmvae_bench" / "__init__.py").write_text("changed = True")
    assert code_version(installed_package(project)) == {"commit": head, "dirty": dirty}


def test_a_wheel_built_outside_version_control_names_no_commit(project):
    assert code_version(installed_package(project)) is None


def test_a_wheel_built_inside_another_repository_names_no_commit(project):
    (project.parent / "other").write_text("")
    git(project.parent, "init", "--quiet")
    git(project.parent, "add", "other")
    git(project.parent, "commit", "--quiet", "--message", "Other")
    assert code_version(installed_package(project)) is None


def test_a_checkout_names_its_own_commit(project):
    head = commit(project)
    assert code_version(project / "benchmark" / "hgmvae_bench") == {"commit": head, "dirty": False}


def test_the_suite_builds_its_wheel_with_the_hook():
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    hooks = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
    assert hooks["custom"] == {"path": "benchmark/hatch_build.py"}
