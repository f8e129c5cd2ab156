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
    assert large["peak_gpu_bytes"] is large["gpu_joules"] is None


def test_a_stage_that_fails_is_measured():
    meter = ResourceMeter(CPU)
    with pytest.raises(ZeroDivisionError), meter("training"):
        raise ZeroDivisionError
    assert meter.seconds["training"] >= 0


def test_energy_is_the_sum_of_the_packages_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(resource_meter, "POWERCAP", tmp_path)
    assert resource_meter.cpu_joules() is None
    for name, count in (
        ("intel-rapl:0", 3_000_000),
        ("intel-rapl:1", 500_000),
        ("intel-rapl:0:0", 7),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{count}\n")
    assert resource_meter.cpu_joules() == 3.5
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("not a number")
    assert resource_meter.cpu_joules() is None


def test_a_reset_counter_gives_no_energy():
    assert resource_meter.energy_between(5.0, 3.0) == 2.0
    assert resource_meter.energy_between(1.0, 3.0) is None
    assert resource_meter.energy_between(None, 3.0) is None


def test_the_cost_of_a_joint_stage_is_divided_except_for_its_peaks():
    stage = {"seconds": 6.0, "peak_bytes": 9, "peak_gpu_bytes": 8}
    stage |= {"cpu_joules": 30.0, "gpu_joules": None}
    shared = {**stage, "seconds": 2.0, "cpu_joules": 10.0, "together": 3}
    assert resource_meter.per_run_share(stage, 3) == shared
