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


class Clock:
    """A monotonic clock that tests move."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def write_remote_heartbeat(files, owner, count=0):
    """Write the heartbeat of a process on another machine."""
    heartbeat = {"machine": "another", "pid": 1, "start": "1", "count": count}
    files.write(f"leases/{owner}.alive", json.dumps(heartbeat).encode())


def test_only_one_process_acquires_a_run(files):
    with Leases(files, "a") as a, Leases(files, "b") as b:
        assert a.acquire("run.json")
        assert a.acquire("run.json")
        assert not b.acquire("run.json")
        assert b.acquire("other.json")


def test_concurrent_processes_acquire_each_run_once(files):
    with Leases(files, "a") as a, Leases(files, "b") as b, Leases(files, "c") as c:
        acquired = []

        def acquire(leases):
            acquired.extend(name for name in map(str, range(100)) if leases.acquire(name))

        threads = [threading.Thread(target=acquire, args=(leases,)) for leases in (a, b, c)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(acquired) == sorted(map(str, range(100)))


def test_leases_of_an_ended_process_are_free(files):
    with Leases(files, "a") as a:
        a.acquire("run.json")
    with Leases(files, "b") as b, Leases(files, "c") as c:
        assert b.acquire("run.json")
        assert not c.acquire("run.json")


def test_leases_of_a_killed_process_on_this_machine_are_free_at_once(files):
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


def test_a_remote_process_is_dead_once_its_heartbeat_stops_for_the_expiry_time(files, clock):
    write_remote_heartbeat(files, "a")
    files.create("leases/run.json.0", b"a")
    with Leases(files, "b", expiry=60, clock=clock) as b:
        for count in range(4):
            assert not b.acquire("run.json")
            clock.seconds += 40
            write_remote_heartbeat(files, "a", count)
        assert not b.acquire("run.json")
        clock.seconds += 59
        assert not b.acquire("run.json")
        clock.seconds += 2
        assert b.acquire("run.json")


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_a_jumping_file_clock_neither_frees_nor_keeps_a_run(files, clock, seconds):
    write_remote_heartbeat(files, "a")
    files.create("leases/run.json.0", b"a")
    with Leases(files, "b", expiry=60, clock=clock) as b:
        jumped = time.time() + seconds
        os.utime(files.root / "leases" / "a.alive", (jumped, jumped))
        assert not b.acquire("run.json")
        clock.seconds += 61
        assert b.acquire("run.json")


def test_the_heartbeat_goes_on_until_the_block_ends(files):
    deadline = time.monotonic() + 60
    with Leases(files, "a", heartbeat=0.01):
        versions = set()
        while len(versions) < 4:
            assert time.monotonic() < deadline
            versions.add(files.version("leases/a.alive"))
            time.sleep(0.005)
    assert files.version("leases/a.alive") is None


def test_releasing_removes_every_lease_on_a_run(files):
    with Leases(files, "a") as a:
        a.acquire("run.json")
        files.create("leases/run.json.1", b"later")
        a.release("run.json")
    assert list((files.root / "leases").iterdir()) == []


def test_leases_on_recorded_runs_are_removed_whoever_holds_them(files):
    with Leases(files, "a") as a:
        a.acquire("recorded.json")
        a.acquire("open.json")
    files.create("leases/recorded.json.1", b"later")
    Leases(files, "b").release_recorded({"recorded.json"}.__contains__)
    assert [path.name for path in (files.root / "leases").iterdir()] == ["open.json.0"]
