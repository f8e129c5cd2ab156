import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hgmvae_bench.storage.leases import Claims
from hgmvae_bench.utils.atomic_files import LocalFiles


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def elsewhere(tmp_path, owner, count=0):
    """The sign of life of a process on another machine."""
    sign = {"machine": "another", "pid": 1, "start": "1", "count": count}
    LocalFiles(tmp_path).write(f"claims/{owner}.alive", json.dumps(sign).encode())


def test_a_run_is_taken_once(files):
    with Claims(files, "a") as a, Claims(files, "b") as b:
        assert a.take("run.json")
        assert a.take("run.json")
        assert not b.take("run.json")
        assert b.take("other.json")


def test_many_at_once_take_a_run_once(files):
    with Claims(files, "a") as a, Claims(files, "b") as b, Claims(files, "c") as c:
        taken = []

        def take(claims):
            taken.extend((name, claims.owner) for name in map(str, range(100)) if claims.take(name))

        threads = [threading.Thread(target=take, args=(claims,)) for claims in (a, b, c)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(name for name, _ in taken) == sorted(map(str, range(100)))


def test_claims_of_one_that_ended_are_free(files):
    with Claims(files, "a") as a:
        a.take("run.json")
    with Claims(files, "b") as b, Claims(files, "c") as c:
        assert b.take("run.json")
        assert not c.take("run.json")


def test_claims_of_one_that_was_killed_here_are_free_at_once(files):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from hgmvae_bench.storage.leases import Claims\n"
        "from hgmvae_bench.utils.atomic_files import LocalFiles\n"
        "claims = Claims(LocalFiles(Path(sys.argv[1])), 'dead').__enter__()\n"
        "assert claims.take('run.json')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, files.root], check=False)
    assert (files.root / "claims" / "dead.alive").is_file()
    with Claims(files, "b") as b:
        assert b.take("run.json")
        assert b.living() == {"b"}
    assert not (files.root / "claims" / "dead.alive").exists()


def test_one_elsewhere_is_dead_when_its_sign_stands_still(files, tmp_path):
    elsewhere(tmp_path, "a")
    files.create("claims/run.json.0", b"a")
    with Claims(files, "b", expiry=0.3) as b:
        for count in range(4):
            assert not b.take("run.json")
            time.sleep(0.15)
            elsewhere(tmp_path, "a", count)
        assert not b.take("run.json")
        time.sleep(0.4)
        assert b.take("run.json")


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_a_clock_that_jumps_neither_frees_nor_keeps_a_run(files, tmp_path, seconds):
    elsewhere(tmp_path, "a")
    files.create("claims/run.json.0", b"a")
    with Claims(files, "b", expiry=0.5) as b:
        jumped = time.time() + seconds
        os.utime(tmp_path / "claims" / "a.alive", (jumped, jumped))
        assert not b.take("run.json")
        time.sleep(0.7)
        assert b.take("run.json")


def test_signs_of_life_go_on_while_the_block_lasts(files):
    deadline = time.monotonic() + 60
    with Claims(files, "a", heartbeat=0.05):
        versions = set()
        while len(versions) < 4:
            assert time.monotonic() < deadline
            versions.add(files.version("claims/a.alive"))
            time.sleep(0.02)
    assert files.version("claims/a.alive") is None


def test_a_settled_run_leaves_nothing(files):
    with Claims(files, "a") as a:
        a.take("run.json")
        files.create("claims/run.json.1", b"later")
        a.settle("run.json")
    assert list((files.root / "claims").iterdir()) == []


def test_claims_of_records_that_are_there_go_whoever_made_them(files):
    with Claims(files, "a") as a:
        a.take("recorded.json")
        a.take("open.json")
    files.create("claims/recorded.json.1", b"later")
    Claims(files, "b").settle_all({"recorded.json"}.__contains__)
    assert [path.name for path in (files.root / "claims").iterdir()] == ["open.json.0"]
