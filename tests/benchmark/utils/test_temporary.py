"""Temporary folders of killed processes are removed by the next start."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils import temporary

CODE = """
import multiprocessing, os, sys
from hgmvae_bench.utils.temporary import process_folder, redirect_multiprocessing
redirect_multiprocessing()
print(process_folder(), multiprocessing.util.get_temp_dir(), flush=True)
sys.stdin.read()
"""


def start(cache, temp):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(temp)},
    )
    folder, sockets = process.stdout.readline().split()
    return process, folder, sockets


@pytest.mark.skipif(sys.platform != "linux", reason="needs XDG_CACHE_HOME")
def test_a_killed_process_leaves_nothing_after_the_next_start():
    with tempfile.TemporaryDirectory() as short:  # A socket's path has at most 104 characters.
        check_abandoned_folders(Path(short) / "c", Path(short) / "t")


def check_abandoned_folders(cache, temp):
    temp.mkdir()
    killed, folder, sockets = start(cache, temp)
    assert sockets.startswith(folder)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    alive, own, _ = start(cache, temp)
    root = cache / "hgmvae-bench" / "tmp"
    assert {str(path) for path in root.iterdir() if path.is_dir()} == {own}
    # The folder of a live process stays until the process ends.
    other, _, _ = start(cache, temp)
    assert Path(own).is_dir()
    for process in (alive, other):
        process.communicate()
    assert list(root.iterdir()) == []
    assert list(temp.iterdir()) == []


def test_a_killed_scoring_leaves_nothing_after_the_next_start(tmp_path):
    """Its temporary files lie on the disk of the cache, since they are renamed."""
    root = tmp_path / "cache" / temporary.CACHE_TEMPORARY
    code = (
        "import os, sys; from pathlib import Path; from hgmvae_bench.utils import temporary\n"
        "with temporary.temporary_folder(Path(sys.argv[1])) as folder:"
        "(folder / 'features').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, root], check=False)
    assert [path.name for path in root.glob("*/*")] == ["features"]
    with temporary.temporary_folder(root.with_name("other")) as living:
        Store(tmp_path).remove_temporaries()
        temporary.remove_abandoned(living.parent)
        assert living.is_dir()
    assert list(root.iterdir()) == []
    assert not living.parent.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_forked_child_that_ends_leaves_the_folder_to_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, "temporary_root", lambda: tmp_path)
    monkeypatch.setattr(temporary, "_folders", {})
    folder = temporary.process_folder()
    child = multiprocessing.get_context("fork").Process(target=os.getpid)
    child.start()
    child.join()
    temporary.remove_abandoned(tmp_path)
    assert folder.is_dir()


def test_a_cache_folder_with_a_long_path_leaves_sockets_where_they_are(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(temporary, "process_folder", lambda: long)
    monkeypatch.setattr(
        temporary.multiprocessing.util, "get_temp_dir", lambda: pytest.fail("too long for a socket")
    )
    temporary.redirect_multiprocessing()
