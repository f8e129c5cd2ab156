"""Build hook that writes the git commit into the wheel.

The wheel gets the file ``hgmvae_bench/_build_info.json``, which `hgmvae_bench.utils.code_version`
reads. A build from an sdist or an export, or without git, writes no such file.
"""

from __future__ import annotations

import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "benchmark/hgmvae_bench"


class CommitHook(BuildHookInterface):
    """Adds the commit of the checkout to a wheel; an editable install reads it from git."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to the wheel's content."""
        if version == "editable":
            return
        package = Path(self.root) / PACKAGE
        # The package cannot be imported, because its dependencies are not installed for a build.
        module = runpy.run_path(str(package / "utils" / "code_version.py"))
        commit = module["code_version"](package)
        if commit is None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="hgmvae-bench-build-")
        path = Path(self._folder.name) / "build_info.json"
        path.write_text(json.dumps(commit), encoding="utf-8")
        build_data["force_include"][str(path)] = f"{package.name}/{module['BUILD_INFO']}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary file."""
        if self._folder is not None:
            self._folder.cleanup()
