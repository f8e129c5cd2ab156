import time

import pytest
import torch

from hgmvae_bench.execution import resource_meter
from hgmvae_bench.execution.resource_meter import ResourceMeter

CPU = torch.device("cpu")


def test_each_stage_has_its_own_time_and_peak_memory():
    meter = ResourceMeter(CPU)
    with meter("large"):
        large = torch.ones(50_000_000)
    del large
    with meter("small"):
        time.sleep(0.05)
    large, small = meter.stages["large"], meter.stages["small"]
    assert small["seconds"] >= 0.05
    assert meter.seconds.keys() == {"large", "small"}
    if large["peak_bytes"] is None:
        pytest.skip("this kernel cannot reset peak memory")
    assert large["peak_bytes"] - small["peak_bytes"] > 150_000_000
    assert large["peak_gpu_bytes"] is None


def test_a_stage_that_fails_is_measured():
    meter = ResourceMeter(CPU)
    with pytest.raises(ZeroDivisionError), meter("training"):
        raise ZeroDivisionError
    assert meter.seconds["training"] >= 0


def test_the_cost_of_a_joint_stage_is_divided_except_for_its_peaks():
    stage = {"seconds": 6.0, "peak_bytes": 9, "peak_gpu_bytes": 8}
    shared = {**stage, "seconds": 2.0, "together": 3}
    assert resource_meter.per_run_share(stage, 3) == shared
