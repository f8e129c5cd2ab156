"""Work spread over threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from hgmvae_bench.threads import spread


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
class TestSpread:
    def test_order_and_threads(self) -> None:
        together = threading.Barrier(3, timeout=60)  # passed by three threads at once only

        def work(item: int) -> tuple[int, int]:
            together.wait()
            return item**2, torch.get_num_threads()

        assert spread(work, range(6)) == [(item**2, 1) for item in range(6)]
        assert torch.get_num_threads() == 3

    def test_errors(self) -> None:
        def fail(item: int) -> None:
            raise ValueError(f"item {item}")

        with pytest.raises(ValueError, match="item 0"):
            spread(fail, range(3))
        assert torch.get_num_threads() == 3
