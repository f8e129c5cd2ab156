"""Models that change their process, exit, vanish or flood their log affect no other run."""

import os
import re
import sys
import threading
from pathlib import Path

import pytest

import hgmvae_bench as hb
from hgmvae_bench.execution import output_capture
from hgmvae_bench.execution.backends import LocalExecutor
from hgmvae_bench.execution.output_capture import log_tail, shorten_log
from hgmvae_bench.execution.process_state import restored_process_state
from hgmvae_bench.execution.run import execute_run
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.plugins.objects import wrap_plugins
from hgmvae_bench.plugins.registry import MODELS
from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.text import shorten_message
from hgmvae_bench.utils.threads import available_cores


class Hostile:
    """A VAE that misbehaves at its first step as its setting ``way`` names."""

    title, reference, settings = "Hostile", "none", {"way": "well"}

    def build(self, *, settings, **rest):
        model = MODELS["vae"].build(settings={}, **rest)
        forward, act = model.forward, getattr(self, settings["way"])

        def hostile(inputs, **options):
            act()
            return forward(inputs, **options)

        model.forward = hostile
        return model

    def well(self): ...

    def changes(self):
        import random
        import tempfile
        import warnings

        import numpy as np
        import torch

        os.chdir(tempfile.gettempdir())
        os.environ.clear()
        os.umask(0o777)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(7)
        torch.manual_seed(7)
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float32)
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        warnings.simplefilter("error")

    def exits(self):
        sys.exit(3)

    def vanishes(self):
        os._exit(0)

    def raises(self):
        raise ValueError("x" * 10_000_000)

    def floods(self):
        for _ in range(3):
            sys.stdout.write("x" * 2_000_000)

    def floods_without_end(self):
        """Print a gigabyte in the first step, half of it around Python's stream."""
        if self.settings["way"] == "well":
            self.settings = {"way": "flooded"}
            block = "x" * 4_000_000
            for _ in range(125):
                os.write(1, block.encode())
                print(block)  # noqa: T201


WAYS = ("changes", "well", "exits", "floods", "vanishes")
GRID = {
    "name": "hostile",
    "title": "Models that misbehave",
    "seeds": 1,
    "network": {"width": 2},
    "training": {"epochs": 1, "batch_size": 64, "train_images": 128},
    "models": {way: {"model": "hostile", "settings": {"way": way}} for way in WAYS},
    "tables": [
        {
            "name": "1",
            "title": "Clustering",
            "datasets": ["digits"],
            "models": list(WAYS),
            "latent_dims": [2],
            "metrics": ["sc"],
            "rows": ["metric"],
            "columns": ["model"],
        }
    ],
}


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """Records by the model's way, all runs one after the other in workers of one thread."""
    folder = tmp_path_factory.mktemp("hostile")
    before = Path.cwd()
    os.chdir(folder)
    try:
        results = hb.run_grid(
            GRID,
            results="r",  # The path is relative, because a worker's directory must not matter.
            device="cpu",
            executor=LocalExecutor(1, available_cores()),
            models={"hostile": Hostile()},
            controls=False,
        )
        runs = {run.record.settings["model"]["settings"]["way"]: run.record for run in results.runs}
    finally:
        os.chdir(before)
    return folder / "r", runs


def test_every_hostile_run_is_recorded_where_it_belongs(hostile_run):
    folder, records = hostile_run
    assert {way: record.status for way, record in records.items()} == {
        "changes": "complete",
        "well": "complete",
        "exits": "failed",
        "floods": "complete",
        "vanishes": "failed",
    }
    assert len(list((folder / "records").iterdir())) == len(WAYS)
    assert records["exits"].error.strip().endswith("SystemExit: 3")
    assert records["vanishes"].error.endswith("the worker process died: exit status 0")


def test_a_run_after_one_that_changed_the_process_is_unaffected(hostile_run, digits, tmp_path):
    _, records = hostile_run
    plugins = wrap_plugins({"hostile": Hostile()})
    with using_plugins(plugins):
        grid = hb.make_grid(GRID)
        run = Run(grid.cell("digits", "well", 2), 0, digits.digest)
        expected = execute_run(run, digits, ["sc"], RunContext(Store(tmp_path)))
    assert records["well"].history == expected.history
    assert records["well"].metrics["sc"].value == expected.metrics["sc"].value
    assert records["well"].provenance["threads"] == 1


def test_a_flooded_log_keeps_its_beginning_and_end(hostile_run):
    folder, records = hostile_run
    log = folder / "logs" / f"{records['floods'].key}.log"
    assert log.stat().st_size < output_capture.MAX_LOG_BYTES
    assert b"bytes omitted" in log.read_bytes()


@pytest.mark.slow
def test_a_run_that_prints_a_gigabyte_fills_neither_memory_nor_disk(tmp_path):
    largest, ended = 0, threading.Event()

    def watch():
        nonlocal largest
        while not ended.wait(0.01):
            sizes = [log.stat().st_size for log in (tmp_path / "logs").glob("*.log")]
            largest = max([largest, *sizes])

    watcher = threading.Thread(target=watch)
    watcher.start()
    models = {"loud": {"model": "hostile", "settings": {"way": "floods_without_end"}}}
    try:
        [run] = hb.run_grid(
            {**GRID, "models": models, "tables": [{**GRID["tables"][0], "models": ["loud"]}]},
            results=tmp_path,
            device="cpu",
            models={"hostile": Hostile()},
            controls=False,
        ).runs
    finally:
        ended.set()
        watcher.join()
    assert run.record.status == "complete"
    log = tmp_path / "logs" / f"{run.record.key}.log"
    [omitted] = re.findall(r"\[at least ([0-9,]+) bytes omitted\]", log.read_text())
    assert 500_000_000 < int(omitted.replace(",", "")) < 1_000_000_000
    assert log.stat().st_size < output_capture.MAX_LOG_BYTES
    assert largest < 400_000_000
    assert run.record.provenance["stages"]["training"]["peak_bytes"] < 2_000_000_000


def test_a_log_that_is_shortened_twice_counts_all_that_is_omitted(tmp_path):
    log = tmp_path / "run.log"
    log.write_bytes(b"a" * 6_000_000)
    shorten_log(log)
    with log.open("ab") as file:
        file.write(b"b" * 6_000_000)
    shorten_log(log)
    kept = output_capture.KEPT_LOG_BYTES
    omitted = b"\n[at least 10,000,000 bytes omitted]\n"
    assert log.read_bytes() == b"a" * kept + omitted + b"b" * kept


def test_a_long_error_is_recorded_briefly(digits, tmp_path):
    plugins = wrap_plugins({"hostile": Hostile()})
    with using_plugins(plugins):
        grid = hb.make_grid(
            {**GRID, "models": {"well": {"model": "hostile", "settings": {"way": "raises"}}}}
            | {"tables": [{**GRID["tables"][0], "models": ["well"]}]}
        )
        run = Run(grid.cell("digits", "well", 2), 0, digits.digest)
        record = execute_run(run, digits, ["sc"], RunContext(Store(tmp_path)))
    assert len(record.error) < 10_000
    assert record.error.splitlines()[-1].startswith("ValueError: xxx")


def test_a_message_of_many_lines_keeps_the_first_and_the_last():
    lines = [f"line {number}" for number in range(1000)]
    short = shorten_message("\n".join(lines)).splitlines()
    assert short == [*lines[:200], "[600 lines omitted]", *lines[-200:]]


def test_a_short_log_is_left_alone_and_a_missing_one_ignored(tmp_path):
    log = tmp_path / "run.log"
    shorten_log(log)
    log.write_text("a line")
    shorten_log(log)
    assert log.read_text() == log_tail(log) == "a line"


def test_the_state_of_the_process_is_restored_after_an_error(tmp_path):
    import torch

    directory, threads = Path.cwd(), torch.get_num_threads()
    seed, path = torch.get_rng_state(), os.environ["PATH"]
    with pytest.raises(ZeroDivisionError), restored_process_state(threads):
        Hostile().changes()
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError
    assert Path.cwd() == directory
    assert os.environ["PATH"] == path
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), seed)
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o400
