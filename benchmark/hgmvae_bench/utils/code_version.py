"""Git commit of the code, from the checkout or from the installed wheel."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

BUILD_INFO = "_build_info.json"
"""File of an installed wheel with the commit that it was built from."""


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
