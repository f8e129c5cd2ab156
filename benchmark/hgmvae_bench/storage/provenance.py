"""Provenance of results: versions, hardware and git commit."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hgmvae_bench.plugins import local_files
from hgmvae_bench.utils.code_version import PACKAGE, code_version
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
