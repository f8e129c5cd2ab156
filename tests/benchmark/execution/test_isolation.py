"""Functions that exit, raise or print in a process of their own."""

import os
import sys
from pathlib import Path

import pytest
import torch

from hgmvae_bench.execution.isolation import MAX_REASON_LENGTH, NoResult, map_isolated


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_a_call_prints_is_discarded():
    streams = [Path("/proc/self/fd/1"), Path("/proc/self/fd/2")]
    assert list(map_isolated(Path.readlink, streams, seconds=120)) == [Path(os.devnull)] * 2


def test_calls_continue_after_one_that_exits_or_raises():
    # Libraries that other tests import replace `sys.exit`.
    assert list(map_isolated(os._exit, [3, 4], seconds=120)) == [
        NoResult("the process died: exit status 3"),
        NoResult("the process died: exit status 4"),
    ]
    raises, number = map_isolated(int, ["x" * 10_000, "2"], seconds=120)
    assert number == 2
    assert "\n" not in raises.reason
    assert raises.reason.startswith("ValueError: invalid literal")
    assert len(raises.reason) <= MAX_REASON_LENGTH


def test_the_process_has_the_number_of_threads_of_its_parent():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expression = "__import__('torch').get_num_threads()"
        assert list(map_isolated(eval, [expression], seconds=120)) == [3]
    finally:
        torch.set_num_threads(before)
