import json

import pytest
import torch

from hgmvae_bench.cli.progress import plan_text
from hgmvae_bench.execution.estimate import survey
from hgmvae_bench.execution.run import execute_run
from hgmvae_bench.execution.tasks import RunContext
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store

CPU = torch.device("cpu")


def look(grid, root, data=None, **options):
    options = {"weights": None, "device": CPU, "workers": 2, **options}
    return survey(grid, Store(root), data or root, **options)


def recorded(store, run, status="complete", seconds=10.0, metrics=("sc", "accuracy")):
    values = {name: MetricValue(value=0.5) for name in metrics if status == "complete"}
    store.add(Record.of(run, status=status, metrics=values, seconds={"training": seconds}))


def test_runs_are_counted_by_what_became_of_them(tiny_grid, digits, tmp_path):
    store, (vae, wae) = Store(tmp_path), tiny_grid.cells
    recorded(store, Run(vae, 0, digits.digest))
    recorded(store, Run(vae, 1, digits.digest), metrics=("sc",))
    recorded(store, Run(wae, 0, digits.digest), status="diverged")
    found = look(tiny_grid, tmp_path)
    counts = [(p.done, p.missing, p.to_score, p.failed) for p in found.cells]
    assert counts == [(1, 0, 1, 0), (0, 1, 0, 1)]


def test_runs_on_other_data_do_not_count_while_the_data_is_here(tiny_grid, tmp_path):
    vae, _ = tiny_grid.cells
    recorded(Store(tmp_path), Run(vae, 0, "other"))
    assert [plan.missing for plan in look(tiny_grid, tmp_path).cells] == [2, 2]


def test_time_comes_from_the_median_of_measured_runs(tiny_grid, digits, tmp_path):
    store, (vae, _) = Store(tmp_path), tiny_grid.cells
    recorded(store, Run(vae, 0, digits.digest), seconds=30)
    with store.replacing_artifacts(Run(vae, 0, digits.digest).key) as folder:
        (folder / "model.safetensors").write_bytes(b"x" * 5000)
    plan = look(tiny_grid.select(models=["vae"]), tmp_path)
    assert (plan.cells[0].seconds, plan.cells[0].basis) == (30, "its own runs")
    assert plan.seconds == 15
    assert plan.bytes == 25_000
    # A longer training is another kind of run.
    other = tiny_grid.select(models=["vae"])
    other = parse_grid(other.text.replace("epochs: 1", "epochs: 2"), "x.yaml")
    assert look(other, tmp_path).cells[0].basis == "calibration, training only"


def test_other_latent_dims_are_like_runs(tiny_text, tiny_grid, digits, tmp_path):
    vae, _ = tiny_grid.cells
    recorded(Store(tmp_path), Run(vae, 0, digits.digest), seconds=30)
    other = parse_grid(tiny_text.replace("latent_dims: [2]", "latent_dims: [5]"), "tiny.yaml")
    plan = look(other.select(models=["vae"]), tmp_path).cells[0]
    assert (plan.seconds, plan.basis) == (30, "like runs")


def test_a_calibration_foresees_what_a_training_takes_and_leaves(tiny_text, digits, tmp_path):
    text = tiny_text.replace("128 }", "1024 }").replace("epochs: 1", "epochs: 2")
    grid = parse_grid(text, "tiny.yaml").select(models=["vae"], seeds=1)
    (plan,) = look(grid, tmp_path).cells
    (cell,) = grid.cells
    record = execute_run(Run(cell, 0, digits.digest), digits, [], RunContext(Store(tmp_path)))
    took = record.seconds["training"]
    # Others compute on this machine as well.
    assert took / 4 < plan.seconds < took * 4
    files = (Store(tmp_path).artifact_folder(record.key)).iterdir()
    assert plan.bytes == pytest.approx(sum(p.stat().st_size for p in files) + 20_000, rel=0.1)


def test_what_is_lacking_is_named_and_the_rest_estimated_without_it(tmp_path, monkeypatch):
    from hgmvae_bench.grid import load_grid

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    grid = load_grid("paper").select(datasets=["mnist"], models=["vae"], seeds=2)
    found = look(grid, tmp_path)
    assert "hgmvae-bench data fetch mnist" in found.missing_data["mnist"]
    assert found.missing_weights.keys() & {"fid", "lpips"}
    assert all("https://" in reason for reason in found.missing_weights.values())
    assert found.seconds == 0
    assert found.not_estimated == 2 * len(found.cells)
    assert found.bytes > 1e6
    text = plan_text(found)
    assert f", without {found.not_estimated} runs that cannot be estimated" in text
    assert "data not here: mnist" in text
    assert json.loads(json.dumps(found.as_json()))["total"]["missing"] == 2 * len(found.cells)


def test_variants_stand_under_their_own_names(tiny_text, tmp_path):
    text = tiny_text.replace(
        "tables:",
        "datasets: { large: { dataset: digits, image_size: 64 } }\n"
        "models: { strong: { model: beta-vae, settings: { beta: 9 } } }\ntables:",
        1,
    ).replace("[vae, wae-imq]", "[beta-vae, strong]")
    grid = parse_grid(text.replace("[digits]", "[large]"), "tiny.yaml")
    told = []
    found = look(grid, tmp_path, progress=told.append)
    named = [(cell["dataset"], cell["model"]) for cell in found.as_json()["cells"]]
    assert named == [("large", "beta-vae"), ("large", "strong")]
    assert told == [f"{model} on images like those of large" for _, model in named]
    assert plan_text(found).splitlines()[2].split()[:3] == ["large", "strong", "2"]


def test_planning_writes_nothing(tiny_grid, tmp_path):
    look(tiny_grid, tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []
