import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hgmvae_bench.storage.leases import Leases
from hgmvae_bench.utils.atomic_files import LocalFiles


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def elsewhere(tmp_path, owner, count=0):
    """The sign of life of a process on another machine."""
    sign = {"machine": "another", "pid": 1, "start": "1", "count": count}
    LocalFiles(tmp_path).write(f"leases/{owner}.alive", json.dumps(sign).encode())


def test_a_run_is_taken_once(files):
    with Leases(files, "a") as a, Leases(files, "b") as b:
        assert a.acquire("run.json")
        assert a.acquire("run.json")
        assert not b.acquire("run.json")
        assert b.acquire("other.json")


def test_many_at_once_take_a_run_once(files):
    with Leases(files, "a") as a, Leases(files, "b") as b, Leases(files, "c") as c:
        taken = []

        def acquire(leases):
            taken.extend(
                (name, leases.owner) for name in map(str, range(100)) if leases.acquire(name)
            )

        threads = [threading.Thread(target=acquire, args=(leases,)) for leases in (a, b, c)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(name for name, _ in taken) == sorted(map(str, range(100)))


def test_claims_of_one_that_ended_are_free(files):
    with Leases(files, "a") as a:
        a.acquire("run.json")
    with Leases(files, "b") as b, Leases(files, "c") as c:
        assert b.acquire("run.json")
        assert not c.acquire("run.json")


def test_claims_of_one_that_was_killed_here_are_free_at_once(files):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from hgmvae_bench.storage.leases import Leases\n"
        "from hgmvae_bench.utils.atomic_files import LocalFiles\n"
        "leases = Leases(LocalFiles(Path(sys.argv[1])), 'dead').__enter__()\n"
        "assert leases.acquire('run.json')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, files.root], check=False)
    assert (files.root / "leases" / "dead.alive").is_file()
    with Leases(files, "b") as b:
        assert b.acquire("run.json")
        assert b.live_owners() == {"b"}
    assert not (files.root / "leases" / "dead.alive").exists()


def test_one_elsewhere_is_dead_when_its_sign_stands_still(files, tmp_path):
    elsewhere(tmp_path, "a")
    files.create("leases/run.json.0", b"a")
    with Leases(files, "b", expiry=0.3) as b:
        for count in range(4):
            assert not b.acquire("run.json")
            time.sleep(0.15)
            elsewhere(tmp_path, "a", count)
        assert not b.acquire("run.json")
        time.sleep(0.4)
        assert b.acquire("run.json")


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_a_clock_that_jumps_neither_frees_nor_keeps_a_run(files, tmp_path, seconds):
    elsewhere(tmp_path, "a")
    files.create("leases/run.json.0", b"a")
    with Leases(files, "b", expiry=0.5) as b:
        jumped = time.time() + seconds
        os.utime(tmp_path / "leases" / "a.alive", (jumped, jumped))
        assert not b.acquire("run.json")
        time.sleep(0.7)
        assert b.acquire("run.json")


def test_signs_of_life_go_on_while_the_block_lasts(files):
    deadline = time.monotonic() + 60
    with Leases(files, "a", heartbeat=0.05):
        versions = set()
        while len(versions) < 4:
            assert time.monotonic() < deadline
            versions.add(files.version("leases/a.alive"))
            time.sleep(0.02)
    assert files.version("leases/a.alive") is None


def test_a_settled_run_leaves_nothing(files):
    with Leases(files, "a") as a:
        a.acquire("run.json")
        files.create("leases/run.json.1", b"later")
        a.release("run.json")
    assert list((files.root / "leases").iterdir()) == []


def test_claims_of_records_that_are_there_go_whoever_made_them(files):
    with Leases(files, "a") as a:
        a.acquire("recorded.json")
        a.acquire("open.json")
    files.create("leases/recorded.json.1", b"later")
    Leases(files, "b").release_recorded({"recorded.json"}.__contains__)
    assert [path.name for path in (files.root / "leases").iterdir()] == ["open.json.0"]
