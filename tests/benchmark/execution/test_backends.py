"""Executors: their bounds, their devices, and options that cannot be passed beside them."""

import pytest

from hgmvae_bench.execution.api import run_grid
from hgmvae_bench.execution.backends import LocalExecutor, local_executor
from hgmvae_bench.execution.tasks import ExecutorError
from hgmvae_bench.utils.bounds import BoundsError


def test_executors_refuse_numbers_out_of_bounds():
    with pytest.raises(BoundsError, match="max_workers: expected an integer of at least 1, got 0"):
        LocalExecutor(1, 0)
    driver = pytest.importorskip("hgmvae_bench.execution.ray.driver", exc_type=ImportError)
    for options in ({"cpus": 0}, {"gpus": -0.5}, {"gpus": float("nan")}, {"max_concurrent": 0}):
        (name,) = options
        with pytest.raises(BoundsError, match=f"^{name}: expected "):
            driver.RayExecutor(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "^workers cannot be passed beside an executor object"),
        ({"workers": 2, "stack_seeds": True}, "^workers and stack_seeds cannot .* LocalExecutor"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_options_that_an_executor_object_would_ignore_are_refused(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ExecutorError, match=message):
        run_grid("smoke", results=tmp_path / "r", executor=LocalExecutor(1), **options)
    assert not (tmp_path / "r").exists()


def test_an_executor_on_ray_uses_a_gpu_if_runs_take_a_share_of_one():
    driver = pytest.importorskip("hgmvae_bench.execution.ray.driver", exc_type=ImportError)
    with_gpu, without = driver.RayExecutor(gpus=0.5), driver.RayExecutor()
    assert [with_gpu.choose_device(asked) for asked in ("auto", "cuda", "cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]
    assert [without.choose_device(asked) for asked in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ExecutorError, match="take no share of a GPU; set gpus"):
        without.choose_device("cuda")


def test_an_executor_on_ray_assumes_as_many_workers_as_this_machine_has_room_for(monkeypatch):
    driver = pytest.importorskip("hgmvae_bench.execution.ray.driver", exc_type=ImportError)
    monkeypatch.setattr(driver, "available_cores", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    executors = [
        driver.RayExecutor(cpus=3),
        driver.RayExecutor(cpus=32),
        driver.RayExecutor(gpus=0.25),
        driver.RayExecutor(gpus=0.25, max_concurrent=3),
    ]
    assert [executor.workers for executor in executors] == [5, 1, 8, 3]


def test_a_stack_has_at_least_two_seeds():
    with pytest.raises(BoundsError, match="at least two seeds must be trained jointly, got 1"):
        local_executor("cuda", 1, stacked=True)
    assert local_executor("cuda", 2, stacked=True).joint_seeds == 2
