"""Number of threads of a process, and the parallel map over them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgmvae_bench.storage.store import Store
from hgmvae_bench.utils.threads import available_cores, parallel_map


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
class TestParallelMap:
    def test_results_keep_their_order_and_calls_use_one_thread(self) -> None:
        together = threading.Barrier(3, timeout=60)  # passed by three threads at once only

        def work(item: int) -> tuple[int, int]:
            together.wait()
            return item**2, torch.get_num_threads()

        assert parallel_map(work, range(6)) == [(item**2, 1) for item in range(6)]
        assert torch.get_num_threads() == 3

    def test_an_error_propagates_and_the_threads_are_restored(self) -> None:
        def fail(item: int) -> None:
            raise ValueError(f"item {item}")

        with pytest.raises(ValueError, match="item 0"):
            parallel_map(fail, range(3))
        assert torch.get_num_threads() == 3


POOLS = """
from threadpoolctl import threadpool_info

class Pools:
    title, reference, direction, cost, needs = "Pools", "none", "lower", "cheap", ("codes",)
    range = (1.0, float("inf"))

    def compute(self, outputs):
        outputs.kmeans_labels
        return max(pool["num_threads"] for pool in threadpool_info())

    def fingerprint(self, outputs):
        return {}

METRICS = {"pools": Pools()}
"""


@pytest.mark.extended
def test_workers_keep_every_pool_to_their_share(tiny_text: str, tmp_path: Path) -> None:
    (tmp_path / "pools.py").write_text(POOLS)
    (tmp_path / "tiny.yaml").write_text(tiny_text.replace("[sc, accuracy]", "[pools]"))
    options = "--grid tiny.yaml --results r --plugin pools.py --model vae --seeds 1 --quiet"
    # A process of its own, because libraries read the variable when they are imported.
    done = subprocess.run(
        [
            Path(sys.executable).with_name("hgmvae-bench"),
            *("run", *options.split(), "--workers", str(available_cores())),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = Store(tmp_path / "r").runs().values()
    assert run.metrics["pools"].value == 1
