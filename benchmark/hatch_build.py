"""Build hook that writes the git commit into the wheel.

The wheel gets the file ``hgmvae_bench/_build_info.json``, which `hgmvae_bench.storage.provenance`
reads. A build from an sdist or an export, or without git, writes no such file.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD_INFO = "hgmvae_bench/_build_info.json"


class CommitHook(BuildHookInterface):
    """Adds the commit of the checkout to a wheel; an editable install reads it from git."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to the wheel's content."""
        commit = None if version == "editable" else checkout_commit(Path(self.root))
        if commit is None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="hgmvae-bench-build-")
        path = Path(self._folder.name) / "build_info.json"
        path.write_text(json.dumps(commit), encoding="utf-8")
        build_data["force_include"][str(path)] = BUILD_INFO

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary file."""
        if self._folder is not None:
            self._folder.cleanup()


def checkout_commit(root: Path) -> dict[str, str | bool] | None:
    """Commit of the checkout at ``root``, and whether it has uncommitted changes.

    None if ``root`` is not tracked by git, even if it lies inside another repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "pyproject.toml")
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
