"""What `plan` reports: counts, unsuccessful runs, missing data, time and disk space."""

import json

import pytest
import torch

from hgmvae_bench.cli.progress import format_survey
from hgmvae_bench.execution import estimate
from hgmvae_bench.execution.backends import LocalExecutor
from hgmvae_bench.execution.isolation import map_isolated
from hgmvae_bench.execution.run import execute_run
from hgmvae_bench.execution.survey import survey
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.plugins.local_files import using_plugins
from hgmvae_bench.plugins.objects import wrap_plugins
from hgmvae_bench.plugins.registry import METRICS, MODELS
from hgmvae_bench.storage.provenance import collect_provenance
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.training.build import build_model
from hgmvae_bench.training.rng import RunRNG
from hgmvae_bench.training.stacking import SingleModel
from hgmvae_bench.training.trainer import Trainer

CPU = torch.device("cpu")


def look(grid, root, data=None, **options):
    options = {"weights": None, "device": "cpu", "executor": LocalExecutor(2), **options}
    store = Store(root)
    return survey(grid, store, store.runs(on_invalid="warn"), data or root, **options)


def add_record(store, run, status="complete", metrics=("sc", "accuracy"), **content):
    """Store a record of this machine whose provenance and other fields can be replaced."""
    values = {name: MetricValue(value=0.5) for name in metrics if status == "complete"}
    content = {"seconds": {"training": 10.0}, **content}
    content["provenance"] = collect_provenance(CPU) | content.get("provenance", {})
    store.add(Record.of(run, status=status, metrics=values, **content))


@pytest.fixture
def one_second_steps(monkeypatch):
    """Let every calibration measure one second a step; return the calibrated cells."""
    cells = []

    def step_seconds(trial):
        cells.append(trial.cell)
        return 1.0

    monkeypatch.setattr(estimate, "time_step", step_seconds)
    return cells


@pytest.fixture
def vae_grid(tiny_grid):
    """One cell with two seeds: 2 steps of 64 of 128 images, one epoch."""
    return tiny_grid.select(models=["vae"])


def test_runs_are_counted_by_their_status(tiny_grid, digits, tmp_path):
    store, (vae, wae) = Store(tmp_path), tiny_grid.cells
    add_record(store, Run(vae, 0, digits.digest))
    add_record(store, Run(vae, 1, digits.digest), metrics=("sc",))
    add_record(store, Run(wae, 0, digits.digest), status="diverged")
    found = look(tiny_grid, tmp_path)
    counts = [(p.complete, p.missing, p.to_score, p.unsuccessful) for p in found.cells]
    assert counts == [(1, 0, 1, 0), (0, 1, 0, 1)]


def test_unsuccessful_runs_are_named_with_reason_and_log(tiny_grid, digits, tmp_path):
    store, run = Store(tmp_path), Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    add_record(store, run, status="failed", error="Traceback\n  line\nValueError: bad width")
    store.log_path(run.key).parent.mkdir()
    store.log_path(run.key).write_text("a warning")
    found = look(tiny_grid, tmp_path)
    (named,) = found.as_json()["unsuccessful"]
    assert named == {
        "key": run.key,
        "status": "failed",
        "reason": "ValueError: bad width",
        "log": f"logs/{run.key}.log",
    }
    assert f"{run.key}: failed: ValueError: bad width (logs/{run.key}.log)" in format_survey(found)


def test_runs_on_other_data_do_not_count_if_the_data_is_available(tiny_grid, tmp_path):
    vae, _ = tiny_grid.cells
    add_record(Store(tmp_path), Run(vae, 0, "other"))
    assert [plan.missing for plan in look(tiny_grid, tmp_path).cells] == [2, 2]


def test_the_time_is_the_median_of_the_cells_runs_on_this_machine(
    vae_grid, digits, tmp_path, one_second_steps
):
    store, run = Store(tmp_path), Run(next(iter(vae_grid.cells)), 0, digits.digest)
    add_record(store, run, seconds={"training": 20.0, "scoring": 10.0})
    with store.replacing_artifacts(run.key) as folder:
        (folder / "model.safetensors").write_bytes(b"x" * 5000)
    found = look(vae_grid, tmp_path)
    assert (found.cells[0].seconds, found.cells[0].basis) == (30, "own runs on this machine")
    assert found.seconds == 15
    assert found.bytes == 25_000
    assert one_second_steps == [], "no calibration whose result is not used"


def test_the_total_time_assumes_the_executors_number_of_workers(
    vae_grid, tmp_path, one_second_steps
):
    surveys = [look(vae_grid, tmp_path, executor=LocalExecutor(n)) for n in (1, 8)]
    assert [(found.workers, found.seconds) for found in surveys] == [(1, 4), (8, 0.5)]


def test_the_disk_space_is_that_of_the_weights_if_no_recorded_run_has_artifacts_here(
    vae_grid, digits, tmp_path, one_second_steps
):
    estimated = look(vae_grid, tmp_path).cells[0].bytes
    (cell,), store = vae_grid.cells, Store(tmp_path)
    for seed in range(2):
        add_record(store, Run(cell, seed, digits.digest))
    three_seeds = vae_grid.select(seeds=3)
    assert look(three_seeds, tmp_path).cells[0].bytes == estimated > 40_000
    with store.replacing_artifacts(Run(cell, 1, digits.digest).key) as folder:
        (folder / "model.safetensors").write_bytes(b"x" * 5000)
    assert look(three_seeds, tmp_path).cells[0].bytes == 25_000


def test_on_a_gpu_the_measured_steps_replay_the_graph(vae_grid, digits, monkeypatch):
    steps = []

    class Graph:
        def replay(self):
            steps.append("replay")

    def capture(trainer, epoch):
        steps.append("capture")
        return Graph()

    monkeypatch.setattr(Trainer, "step", lambda *_: steps.append("eager"))
    monkeypatch.setattr(Trainer, "try_without_sync", lambda *_: steps.append("test"))
    monkeypatch.setattr(Trainer, "capture", capture)
    (cell,) = vae_grid.cells
    group = SingleModel(build_model(cell, digits.input_dim), RunRNG(0, CPU))
    images = digits.train_images[: 10 * cell.training.batch_size]
    trainer = Trainer(group, images, cell.training, batch_seeds=[0], device=CPU)
    trainer.use_graphs = True
    list(trainer.steps(1))
    n_warm_up = estimate.warm_up_steps(torch.device("cuda"))
    assert steps[n_warm_up - 1] == "capture"
    assert set(steps[n_warm_up:]) == {"replay"}


def test_runs_with_another_latent_dim_are_similar(tiny_text, digits, tmp_path, one_second_steps):
    vae, _ = parse_grid(tiny_text, "tiny.yaml").cells
    add_record(Store(tmp_path), Run(vae, 0, digits.digest), seconds={"training": 30.0})
    other = parse_grid(tiny_text.replace("latent_dims: [2]", "latent_dims: [5]"), "tiny.yaml")
    plan = look(other.select(models=["vae"]), tmp_path).cells[0]
    assert (plan.seconds, plan.basis) == (30, "similar runs on this machine")
    # A longer training is not similar.
    longer = parse_grid(tiny_text.replace("epochs: 1", "epochs: 2"), "tiny.yaml")
    plan = look(longer.select(models=["vae"]), tmp_path).cells[0]
    assert (plan.seconds, plan.basis) == (4, "calibration, training only")


@pytest.mark.parametrize("other", [{"cpu": "Old CPU"}, {"threads": 64}])
def test_the_time_of_another_cpu_is_scaled_by_a_calibration(
    vae_grid, digits, tmp_path, one_second_steps, other
):
    run = Run(next(iter(vae_grid.cells)), 0, digits.digest)
    # Half a second a step there: twice as fast as here.
    seconds = {"training": 1.0, "encoding": 2.0, "scoring": 3.0}
    add_record(Store(tmp_path), run, seconds=seconds, provenance=other)
    (plan,) = look(vae_grid, tmp_path).cells
    assert plan.seconds == 12
    assert plan.basis.startswith("own runs on ")
    assert plan.basis.endswith("× 2 by calibration")
    assert str(next(iter(other.values()))) in plan.basis


@pytest.mark.parametrize(
    "unlike",
    [
        {"provenance": {"device": "cuda", "gpu": "NVIDIA H200"}},
        {"provenance": {"resumed_after_epoch": 1}},
        {"status": "failed"},
    ],
)
def test_records_of_a_gpu_resumed_and_failed_runs_do_not_count(
    vae_grid, digits, tmp_path, one_second_steps, unlike
):
    add_record(Store(tmp_path), Run(next(iter(vae_grid.cells)), 0, digits.digest), **unlike)
    (plan,) = look(vae_grid, tmp_path).cells
    assert (plan.seconds, plan.basis) == (2, "calibration, training only")


@pytest.mark.slow
def test_a_calibration_predicts_time_and_disk_space(tiny_text, digits, tmp_path):
    text = tiny_text.replace("128 }", "1024 }").replace("epochs: 1", "epochs: 2")
    grid = parse_grid(text, "tiny.yaml").select(models=["vae"], seeds=1)
    (plan,) = look(grid, tmp_path).cells
    (cell,) = grid.cells
    run, store = Run(cell, 0, digits.digest), Store(tmp_path)
    record = execute_run(run, digits, [], RunContext(store))
    took = record.seconds["training"]
    # Other processes compute on this machine as well.
    assert took / 4 < plan.seconds < took * 4
    files = store.artifact_folder(record.key).iterdir()
    assert plan.bytes == pytest.approx(sum(p.stat().st_size for p in files) + 20_000, rel=0.1)


class Untrainable:
    """A VAE whose training step ends in the way that its setting names."""

    title, reference, settings = "Untrainable", "none", {"way": "well"}

    def build(self, *, settings, **rest):
        import ctypes
        import os
        import sys
        import time

        model = MODELS["vae"].build(settings={}, **rest)
        ways = {
            "exits": lambda: sys.exit(3),
            "vanishes": lambda: os._exit(4),
            "crashes": lambda: ctypes.string_at(0),
            "hangs": lambda: time.sleep(1000),
            "raises": lambda: {}["x" * 1000],
        }
        if settings["way"] != "well":
            model.forward = lambda *_, **__: ways[settings["way"]]()
        return model


def test_models_that_cannot_be_calibrated_are_unknown_and_cost_no_other_estimate(
    tiny_text, tmp_path, monkeypatch
):
    reasons = {
        "exits": "the process died: exit status 3",
        "vanishes": "the process died: exit status 4",
        "crashes": "the process died: SIGSEGV",
        "hangs": "not finished within 5 s",
        "raises": "KeyError: 'xxx",
    }
    # The limit includes the start of the process, but the fork server is started before.
    assert list(map_isolated(int, ["0"], seconds=120)) == [0]
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 5.0)
    ways = ["well", *reasons]
    models = "".join(f"  {w}: {{ model: bad, settings: {{ way: {w} }} }}\n" for w in ways)
    text = tiny_text.replace("tables:", f"models:\n{models}tables:", 1)
    text = text.replace("[vae, wae-imq]", f"[vae, {', '.join(ways)}]")
    with using_plugins(wrap_plugins({"bad": Untrainable()})):
        plans = look(parse_grid(text, "tiny.yaml"), tmp_path).cells
    found = {plan.model: plan for plan in plans}
    for way, reason in reasons.items():
        assert found[way].seconds is None
        assert found[way].basis.startswith(f"unknown: the model did not train a step ({reason}")
        assert len(found[way].basis) < 120
    assert found["vae"].seconds > 0
    assert found["well"].seconds > 0
    assert found["well"].bytes == found["vae"].bytes


def test_missing_data_and_weights_are_named_and_a_known_size_still_gives_a_time(
    tmp_path, monkeypatch, one_second_steps
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    grid = load_grid("paper").select(datasets=["mnist"], models=["vae"], seeds=2)
    found = look(grid, tmp_path)
    assert "hgmvae-bench data fetch mnist" in found.missing_data["mnist"]
    assert found.missing_weights.keys() & {"fid", "lpips"}
    assert all("https://" in reason for reason in found.missing_weights.values())
    # 468 steps of 128 of 60,000 images in each of ten epochs.
    assert {plan.seconds for plan in found.cells} == {4680}
    assert found.not_estimated == 0
    assert found.bytes > 1e6
    assert "missing data: mnist" in format_survey(found)
    assert json.loads(json.dumps(found.as_json()))["total"]["missing"] == 2 * len(found.cells)


def test_weights_in_the_passed_folder_are_not_missing(tmp_path, monkeypatch, one_second_steps):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    grid = load_grid("paper").select(datasets=["mnist"], models=["vae"], seeds=1)
    weights = tmp_path / "weights"
    missing = look(grid, tmp_path, weights=weights).missing_weights
    assert len(missing) > 1
    weights.mkdir()
    for file in METRICS["fid"].pretrained():
        (weights / file.filename).touch()
    assert look(grid, tmp_path, weights=weights).missing_weights.keys() == missing.keys() - {"fid"}
    for name in missing:
        for file in METRICS[name].pretrained():
            (weights / file.filename).touch()
    assert look(grid, tmp_path, weights=weights).missing_weights == {}


def test_a_missing_dataset_of_unknown_size_is_not_calibrated(tiny_text, tmp_path, one_second_steps):
    text = tiny_text.replace("[digits]", "['folder:nowhere']").replace(", train_images: 128", "")
    found = look(parse_grid(text, "tiny.yaml").select(models=["vae"]), tmp_path)
    assert found.cells[0].basis == "unknown: the number of images"
    assert one_second_steps == []
    assert found.not_estimated == 2
    assert ", without 2 runs that cannot be estimated" in format_survey(found)


def test_variants_are_listed_under_their_own_names(tiny_text, tmp_path, one_second_steps):
    text = tiny_text.replace(
        "tables:",
        "datasets: { large: { dataset: digits, image_size: 64 } }\n"
        "models: { strong: { model: beta-vae, settings: { beta: 9 } } }\ntables:",
        1,
    ).replace("[vae, wae-imq]", "[beta-vae, strong]")
    grid = parse_grid(text.replace("[digits]", "[large]"), "tiny.yaml")
    calibrated = []
    found = look(grid, tmp_path, progress=calibrated.append)
    names = [(cell["dataset"], cell["model"]) for cell in found.as_json()["cells"]]
    assert names == [("large", "beta-vae"), ("large", "strong")]
    assert [text.split()[0] for text in calibrated] == ["beta-vae", "strong"]
    assert format_survey(found).splitlines()[2].split()[:3] == ["large", "strong", "2"]


def test_planning_writes_nothing(vae_grid, tmp_path, one_second_steps):
    look(vae_grid, tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []
