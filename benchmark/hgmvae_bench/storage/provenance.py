"""Provenance of results: versions, hardware and git commit."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.plugins import local_files
from hgmvae_bench.utils.threads import available_cores

PACKAGE = Path(__file__).parents[1]

BUILD_INFO = "_build_info.json"
"""File of an installed wheel with the commit that it was built from."""

PACKAGES = (
    "hgmvae-bench",
    "torch",
    "torchvision",
    "pythae",
    "numpy",
    "scipy",
    "scikit-learn",
    "pytorch-msssim",
    "torch-fidelity",
    "lpips",
)


def collect_provenance(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and code of this process, as JSON.

    `hgmvae_bench.storage.schema.ProvenanceView` has the types of the entries that are read again.
    """
    return {
        "python": platform.python_version(),
        "packages": _package_versions(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "gpu_bytes": torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cores": available_cores(),
        "code": code_version(PACKAGE),
        "plugins": {plugin.name: plugin.digest for plugin in local_files.active_plugins()},
    }


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@functools.cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def code_version(package: Path) -> dict[str, str | bool] | None:
    """Git commit of the code, and whether the checkout had uncommitted changes.

    An installed wheel holds the commit that it was built from in a file, which the build hook
    (``benchmark/hatch_build.py``) writes.

    Args:
        package: folder of ``hgmvae_bench``.

    Returns:
        The entries of `hgmvae_bench.storage.schema.CodeVersion`; None if neither git nor the file
        gives the commit.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(package), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return _built_from(package)
    return {"commit": commit, "dirty": bool(changes)}


def _built_from(package: Path) -> dict[str, str | bool] | None:
    """Commit that the installed wheel was built from; None if it does not hold one."""
    try:
        built: dict[str, str | bool] = json.loads((package / BUILD_INFO).read_bytes())
    except FileNotFoundError:
        return None
    return built
