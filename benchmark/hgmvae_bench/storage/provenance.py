"""Where a result comes from: versions, hardware, precision, code."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.plugins import local_files
from hgmvae_bench.utils.threads import available_cores

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
    """JSON of everything about this process that a reader of a record may want to know."""
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
        "code": _code_version(),
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
def _code_version() -> dict[str, str | bool] | None:
    """Commit of the checkout that the code runs from, and whether it has uncommitted changes.

    None where this file is not under version control, as in an installed wheel.
    """
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(file.parent), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
