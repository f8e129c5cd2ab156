"""Killed processes, signals, full disks and broken models lose nothing that is recorded."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgmvae_bench.execution import session
from hgmvae_bench.storage.store import Store

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")


def start(folder, *options, results="r", **environment):
    return subprocess.Popen(
        [HGMVAE_BENCH, "run", "--grid", "tiny.yaml", "--results", results, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        start_new_session=True,
    )


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def outcomes(root):
    """The content of every record that must not depend on interruptions."""
    return {
        key: (
            run.record.status,
            run.record.history,
            {name: (value.value, value.fingerprint) for name, value in run.metrics.items()},
        )
        for key, run in Store(root).runs().items()
    }


def wait_for(condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not (met := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return met


def workers(pid):
    """Process ids of a driver's fork server and of its workers."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [
            int(child)
            for child in children
            if "multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_text()
        ]
    except OSError:
        return []
    return found + [process for child in found for process in workers(child)]


@pytest.fixture(scope="module")
def expected(tiny_run):
    """Outcomes of the tiny grid without any fault, one thread a worker.

    The runs that are compared with them need as many threads: others round differently.
    """
    return outcomes(tiny_run / "r")


@pytest.fixture
def run_tiny(cli, tmp_path):
    """Function that runs the grid ``tiny.yaml`` of a folder in this process."""

    def run(*options, cwd=tmp_path):
        return cli("run", "--grid", "tiny.yaml", "--results", "r", *options, cwd=cwd)

    return run


# Use 50 or more before a release; each attempt takes about the time of the grid.
ATTEMPTS = int(os.environ.get("HGMVAE_BENCH_KILLS", "3"))


@pytest.mark.slow
@pytest.mark.extended
def test_sigkill_at_a_random_moment_loses_no_record(expected, tiny_text, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    began = time.monotonic()
    code, _, err = finish(start(tmp_path, results="timed"))
    assert code == 0, err
    seconds = time.monotonic() - began
    rng = random.Random(0)
    known = {}
    for _ in range(ATTEMPTS):
        if len([1 for status, *_ in known.values() if status == "complete"]) == 4:
            shutil.rmtree(tmp_path / "r")
            known = {}
        process = start(tmp_path, "--retry-failed")
        time.sleep(rng.uniform(0.2, 0.9) * seconds)
        victims = {"worker": workers(process.pid), "driver": [process.pid]}
        victims["both"] = victims["worker"] + victims["driver"]
        kind = rng.choice(list(victims))
        for pid in victims[kind]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == "worker":
            code, _, err = finish(process)
            assert code in (0, 1), err
        else:
            process.communicate(timeout=60)
        now = outcomes(tmp_path / "r") if (tmp_path / "r").exists() else {}
        for key, outcome in known.items():
            if outcome[0] == "complete":
                assert now[key] == outcome
        known = now
    code, _, err = finish(start(tmp_path, "--retry-failed"))
    assert code == 0, err
    assert outcomes(tmp_path / "r") == expected
    assert list((tmp_path / "r").rglob(".tmp-*")) == []
    assert list((tmp_path / "r" / "leases").iterdir()) == []


def test_the_lease_of_a_driver_that_died_after_its_last_record_is_removed(run_tiny, tiny):
    leases = tiny / "r" / "leases"
    record = sorted((tiny / "r" / "records").iterdir())[0].name
    (leases / f"{record}.0").write_text("dead")
    (leases / "dead.alive").write_text('{"machine": null, "pid": 1, "start": "1", "count": 0}')
    outcome = run_tiny(cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert "nothing to train" in outcome.stdout
    # A driver on another machine counts as dead only after a minute.
    assert [path.name for path in leases.iterdir()] == ["dead.alive"]


@pytest.mark.extended
def test_a_killed_fork_server_is_replaced(expected, tiny_text, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    process = start(tmp_path)
    server, *_ = wait_for(lambda: workers(process.pid))
    os.kill(server, signal.SIGKILL)  # While it imports, before it has forked a worker.
    code, _, err = finish(process)
    assert code == 0, err
    assert outcomes(tmp_path / "r") == expected


@pytest.mark.extended
def test_two_drivers_share_a_grid_and_train_no_run_twice(expected, tiny_text, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    processes = [start(tmp_path) for _ in range(2)]
    ended = [finish(process) for process in processes]
    assert [code for code, _, _ in ended] == [0, 0], ended
    started = [line for _, out, _ in ended for line in out.splitlines() if line.endswith("started")]
    assert len(started) == len(set(started)) == 4
    # A driver that plans after the other's first record has fewer runs.
    assert all(re.search(r"\[(\d)/\1\]", out) or "nothing to train" in out for _, out, _ in ended)
    assert outcomes(tmp_path / "r") == expected
    assert len(list((tmp_path / "r" / "records").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.extended
def test_two_drivers_lose_no_record_while_workers_and_one_of_them_are_killed(
    expected, tiny_text, tmp_path
):
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    records, rng = tmp_path / "r" / "records", random.Random(0)

    def run_under_way():
        logs = {path.stem for path in (tmp_path / "r" / "logs").glob("*.log")}
        return logs - {path.name.partition(".")[0] for path in records.glob("*.json")}

    for victim in ("worker", "driver"):
        drivers = [start(tmp_path, "--retry-failed") for _ in range(2)]
        wait_for(lambda: run_under_way() or all(each.poll() is not None for each in drivers))  # noqa: B023
        known = outcomes(tmp_path / "r")
        first = rng.choice(drivers)
        # The first of them is the fork server.
        busy = [pid for each in drivers for pid in workers(each.pid)[1:]]
        victims = busy if victim == "worker" else [first.pid]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for each in drivers:
            code, _, err = finish(each)
            assert code in ((0, 1, -9) if each is first and victim == "driver" else (0, 1)), err
        now = outcomes(tmp_path / "r")
        assert {k: o for k, o in known.items() if o[0] == "complete"}.items() <= now.items()
        if victim == "worker" and set(now) == set(expected):
            for path in sorted(records.iterdir())[:2]:  # So that there is something to run again.
                key = path.name.partition(".")[0]
                (tmp_path / "r" / "logs" / f"{key}.log").unlink(missing_ok=True)
                path.unlink()
    code, _, err = finish(start(tmp_path, "--retry-failed"))
    assert code == 0, err
    assert outcomes(tmp_path / "r") == expected
    assert list((tmp_path / "r").rglob(".tmp-*")) == []
    assert list((tmp_path / "r" / "leases").iterdir()) == []


LONG = "epochs: 400, batch_size: 64, train_images: 1024"


def test_sigterm_stops_the_grid_and_the_message_names_the_command(tiny_text, tmp_path):
    text = tiny_text.replace("epochs: 1, batch_size: 64, train_images: 128", LONG)
    (tmp_path / "tiny.yaml").write_text(text)
    process = start(tmp_path, "--workers", "1", "--model", "vae", "--seeds", "1")
    wait_for(lambda: list((tmp_path / "r" / "logs").glob("*.log")))
    os.killpg(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGTERM, err
    assert "to continue: hgmvae-bench run --grid tiny.yaml" in err
    assert "Traceback" not in err
    assert Store(tmp_path / "r").runs() == {}


@pytest.mark.extended
def test_ctrl_c_while_workers_start_reaches_only_the_driver(tiny_text, tmp_path):
    text = tiny_text.replace("epochs: 1, batch_size: 64, train_images: 128", LONG)
    (tmp_path / "tiny.yaml").write_text(text)
    process = start(tmp_path, "--workers", "1", "--model", "vae", "--seeds", "1")
    wait_for(lambda: workers(process.pid))  # The fork server imports torch for seconds.
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert code == 128 + signal.SIGINT, err
    assert "Traceback" not in err + out
    assert "epoch 2 of" not in out
    assert Store(tmp_path / "r").runs() == {}


@pytest.mark.extended
def test_the_second_signal_stops_at_once(tiny_text, tmp_path):
    # An epoch takes minutes, so that the first signal alone would not end the run.
    text = tiny_text.replace("width: 2", "width: 64").replace(", train_images: 128", "")
    (tmp_path / "tiny.yaml").write_text(text)
    process = start(tmp_path, "--workers", "1", "--model", "vae", "--seeds", "1")
    wait_for(lambda: list((tmp_path / "r" / "logs").glob("*.log")))
    os.killpg(process.pid, signal.SIGINT)
    assert any("stopping" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    code, _, err = finish(process)
    assert time.monotonic() - began < 30
    assert code == 130
    # It was requested, so it is not shown as an error.
    assert err.splitlines()[-1].startswith("stopped at once; ")
    assert Store(tmp_path / "r").runs() == {}


@pytest.fixture
def odd_grid(tmp_path, odd_plugin, odd_text):
    def write(*ways):
        (tmp_path / "tiny.yaml").write_text(odd_text("vae", *ways))
        (tmp_path / "odd.py").write_text(odd_plugin)

    return write


@pytest.mark.slow
@pytest.mark.extended
def test_a_run_that_hangs_crashes_or_runs_out_of_memory_affects_no_other(
    odd_grid, run_tiny, tmp_path, monkeypatch
):
    # The driver builds every model before the grid begins, which would end this process.
    monkeypatch.setattr(session, "check_cells", lambda grid, cells, data: None)
    ways = ("well", "hangs", "crashes", "out-of-memory")
    odd_grid(*ways)
    outcome = run_tiny("--plugin", "odd.py", "--workers", "2", "--time-limit", "20s")
    assert outcome.exit_status == 1, outcome.stderr
    runs = Store(tmp_path / "r").runs().values()
    records = {
        run.record.settings["model"]["settings"].get("way", "vae"): run.record for run in runs
    }
    assert records["well"].status == records["vae"].status == "complete"
    assert {records[way].status for way in ways[1:]} == {"failed"}
    last = {way: records[way].error.splitlines()[-1] for way in ways[1:]}
    assert last["hangs"] == "not finished within the time limit of 20 s"
    assert last["crashes"] == "the worker process died: SIGSEGV"
    assert last["out-of-memory"].startswith("CUDA out of memory. Tried to allocate")
    assert re.search(r'odd\.py", line \d+ in build', records["hangs"].error)
    assert "Segmentation fault" in records["crashes"].error
    log = Store(tmp_path / "r").log_path(records["well"].key).read_text()
    assert "a word from the model" in log
    assert "a warning from the model" in log
    assert "a word from the model" not in outcome.stdout
    assert f"(log: r/logs/{records['crashes'].key}.log)" in outcome.stdout


def test_a_missing_plugin_is_named_on_resume_and_the_results_stay(odd_grid, run_tiny, tmp_path):
    odd_grid("well")
    outcome = run_tiny("--plugin", "odd.py", "--workers", "1")
    assert outcome.exit_status == 0, outcome.stderr
    before = outcomes(tmp_path / "r")
    outcome = run_tiny()
    assert outcome.exit_status == 2
    assert "unknown model 'odd'" in outcome.stderr
    assert outcomes(tmp_path / "r") == before
    outcome = run_tiny("--plugin", "odd.py")
    assert outcome.exit_status == 0
    assert "nothing to train" in outcome.stdout


def test_a_damaged_record_is_named_and_its_run_repeated_on_repair(expected, run_tiny, tiny):
    victim = sorted((tiny / "r" / "records").iterdir())[1]
    victim.write_bytes(victim.read_bytes().replace(b'"seed": ', b'"seed":  '))
    outcome = run_tiny(cwd=tiny)
    assert outcome.exit_status == 2
    assert f"{victim.name}: truncated or edited" in outcome.stderr
    assert "--repair" in outcome.stderr
    outcome = run_tiny("--repair", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert f"moved aside: r/damaged/records/{victim.name}" in outcome.stderr
    assert "1 to train" in outcome.stdout
    assert outcomes(tiny / "r") == expected


def mount_small(path, *options):
    """Mount a file system of 6 MB, or skip the test."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=6m", *options)), "tmpfs", path]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")


def test_a_full_disk_loses_no_record_and_the_grid_continues_with_space(
    expected, run_tiny, tiny_text, tmp_path
):
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    mount_small(tmp_path / "r")
    try:
        with (tmp_path / "r" / "ballast").open("wb") as file:
            file.write(b"x" * (6 * 2**20 - 120 * 1024))
        outcome = run_tiny()
        assert outcome.exit_status == 2, outcome.stderr
        assert "No space left on device" in outcome.stderr
        kept = outcomes(tmp_path / "r")
        assert list((tmp_path / "r" / "records").glob(".tmp-*")) == []
        (tmp_path / "r" / "ballast").unlink()
        outcome = run_tiny()
        assert outcome.exit_status == 0, outcome.stderr
        assert kept.items() <= outcomes(tmp_path / "r").items()
        assert outcomes(tmp_path / "r") == expected
    finally:
        subprocess.run(["umount", "-l", tmp_path / "r"], check=True)


def test_a_read_only_folder_is_named_and_unchanged(run_tiny, tiny_run, tmp_path):
    shutil.copy(tiny_run / "tiny.yaml", tmp_path)
    mount_small(tmp_path / "r")
    try:
        shutil.copytree(tiny_run / "r", tmp_path / "r", dirs_exist_ok=True)
        sorted((tmp_path / "r" / "records").iterdir())[0].unlink()
        before = outcomes(tmp_path / "r")
        remount = ["mount", "-o", "remount,ro", tmp_path / "r"]
        if subprocess.run(remount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not permitted here")
        outcome = run_tiny()
        assert outcome.exit_status == 2
        assert "cannot be written: Read-only file system" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert outcomes(tmp_path / "r") == before
    finally:
        subprocess.run(["umount", "-l", tmp_path / "r"], check=True)
