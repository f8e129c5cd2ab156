"""``run``, ``plan`` and ``evaluate`` as a user calls them."""

import json
import shutil
from collections import Counter

import pytest
from PIL import Image

from hgmvae_bench.execution.speed import measure
from hgmvae_bench.grid import Run, load_grid
from hgmvae_bench.storage.schema import Record
from hgmvae_bench.storage.store import Store

TINY_RUN = ("run", "--grid", "tiny.yaml", "--results", "r")


@pytest.fixture
def folder(tmp_path, tiny_text):
    """Folder with the tiny grid and no results."""
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    return tmp_path


def test_a_run_prints_its_progress_and_tables_and_writes_them(tiny):
    stdout = (tiny / "stdout").read_text()
    lines = stdout.splitlines()
    assert lines[0] == "4 runs: 4 to train, 0 to score, 0 complete"
    assert {line for line in lines if line.endswith("started")} == {
        f"digits, {model}, L = 2, seed {seed}: started"
        for model in ("VAE", "WAE-IMQ")
        for seed in (0, 1)
    }
    assert sum(line.startswith("[4/4] digits, ") for line in lines) == 1
    assert "Table 1. Clustering" in lines
    assert "\x1b" not in stdout
    tables = {path.name for path in (tiny / "r" / "tables" / "tiny").iterdir()}
    assert tables == {f"table-1.{suffix}" for suffix in ("txt", "csv", "md", "tex")}
    assert len(list((tiny / "r" / "records").iterdir())) == 4


def test_a_finished_grid_is_not_repeated_and_on_a_terminal_its_summary_is_printed(cli, tiny):
    outcome = cli(*TINY_RUN, cwd=tiny, terminal=True, columns=80)
    assert outcome.exit_status == 0
    assert "4 runs: nothing to train, 4 complete" in outcome.stdout
    assert "Table 1. Clustering" in outcome.stdout


def test_a_dry_run_prints_what_is_missing_and_writes_nothing(cli, tiny):
    before = sorted(tiny.rglob("*"))
    outcome = cli(*TINY_RUN, "--seeds", "3", "--dry-run", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    heads, *rows = outcome.stdout.splitlines()
    assert heads.split()[:5] == ["dataset", "model", "L", "complete", "missing"]
    assert [row.split()[:5] for row in rows[:2]] == [
        ["digits", "vae", "2", "2", "1"],
        ["digits", "wae-imq", "2", "2", "1"],
    ]
    assert "4 runs complete, 2 missing" in outcome.stdout
    assert sorted(tiny.rglob("*")) == before


def test_plan_prints_the_same_as_json(cli, tiny):
    plan = ("plan", "--grid", "tiny.yaml", "--results", "r", "--json")
    outcome = cli(*plan, "--seeds", "3", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    total = json.loads(outcome.stdout)["total"]
    assert (total["complete"], total["missing"], total["unsuccessful"]) == (4, 2, 0)


def test_images_of_another_size_are_other_cells(cli, tiny):
    plan = ("plan", "--grid", "tiny.yaml", "--results", "r", "--model", "vae", "--json")
    plans = {size: cli(*plan, "--image-size", size, cwd=tiny) for size in (32, 64)}
    assert [outcome.exit_status for outcome in plans.values()] == [0, 0]
    found = {size: json.loads(outcome.stdout) for size, outcome in plans.items()}
    counts = {size: (p["total"]["complete"], p["total"]["missing"]) for size, p in found.items()}
    assert counts == {32: (2, 0), 64: (0, 2)}
    grid = load_grid(str(tiny / "tiny.yaml")).select(models=["vae"], image_size=64)
    assert [cell["cell"] for cell in found[64]["cells"]] == [cell.identity for cell in grid.cells]


def test_plan_refuses_a_precision_that_run_would_refuse(cli, tiny):
    options = ("--precision", "tf32", "--device", "cpu")
    for command in ("run", "plan"):
        outcome = cli(command, "--grid", "tiny.yaml", "--results", "r", *options, cwd=tiny)
        assert outcome.exit_status == 2
        assert "precision tf32 is not supported on this cpu" in outcome.stderr
        assert "timing" not in outcome.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--ray-cpus", "2"), "--ray-cpus"),
        (("--ray-address", "auto", "--ray-gpus", "0.5"), "--ray-address, --ray-gpus"),
    ],
)
def test_options_for_ray_are_refused_without_it(cli, tmp_path, options, named):
    outcome = cli("run", "--grid", "smoke", "--results", tmp_path / "r", *options)
    assert outcome.exit_status == 2
    assert f"Invalid value for {named}: needs --executor ray" in outcome.stderr
    assert not (tmp_path / "r").exists()


def test_quiet_prints_only_the_tables(cli, tiny):
    shutil.rmtree(tiny / "r" / "controls")  # Scoring them anew is not reported either.
    outcome = cli(*TINY_RUN, "--quiet", cwd=tiny)
    assert outcome.exit_status == 0
    assert outcome.stdout.splitlines()[:2] == ["", "Table 1. Clustering"]
    assert outcome.stderr == ""


def test_a_setting_of_the_command_line_becomes_part_of_the_runs(cli, folder):
    options = ("--model", "vae", "--seeds", "1", "--set", "training.learning_rate=0.002")
    outcome = cli(*TINY_RUN, *options, "--set", "training.epochs=2", cwd=folder)
    assert outcome.exit_status == 0, outcome.stderr
    (run,) = Store(folder / "r").runs().values()
    assert run.record.settings["training"]["learning_rate"] == 0.002
    assert run.record.settings["training"]["epochs"] == 2
    assert len(run.record.history["loss"]) == 2


WEIGHT_FILES = """
class WeightFiles:
    title, reference, direction, cost, needs = "Files", "none", "higher", "cheap", ("codes",)
    range = (0, float("inf"))

    def compute(self, outputs):
        return float(len(list(outputs.weights.iterdir())))

    def fingerprint(self, outputs):
        return {"n_images": len(outputs.test_images), "folder": str(outputs.weights)}

METRICS = {"weight-files": WeightFiles()}
"""


def test_metrics_of_runs_and_controls_get_the_folder_of_weights(cli, folder):
    (folder / "files.py").write_text(WEIGHT_FILES)
    (folder / "w").mkdir()
    for name in ("a.pth", "b.pth", "c.pth"):
        (folder / "w" / name).touch()
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text.replace("[sc, accuracy]", "[weight-files]"))
    options = ("--plugin", "files.py", "--weights", "w", "--model", "vae", "--seeds", 1)
    outcome = cli(*TINY_RUN, *options, cwd=folder)
    assert outcome.exit_status == 0, outcome.stderr
    store = Store(folder / "r")
    [run] = store.runs().values()
    found = run.metrics["weight-files"]
    # The path is absolute, because a model may change the directory of a worker.
    assert (found.value, found.fingerprint["folder"]) == (3, str(folder / "w"))
    [pca] = store.controls().values()
    assert pca.control == "pca"
    assert pca.metrics["weight-files"].value == 3


def test_evaluate_computes_a_metric_of_finished_runs_and_prints_it(cli, tiny):
    outcome = cli("evaluate", "--metrics", "nmi", "--results", "r", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert "4 runs: 0 to train, 4 to score, 0 complete" in outcome.stdout
    assert all("nmi" in run.metrics for run in Store(tiny / "r").runs().values())
    assert "NMI" in outcome.stdout
    default, everything = (
        cli("table", "1", "--results", "r", *options, cwd=tiny).stdout
        for options in ([], ["--all-metrics"])
    )
    assert "NMI" not in default
    assert "NMI" in everything


def test_evaluate_leaves_the_models_that_are_not_selected(cli, tiny):
    command = ("evaluate", "--metrics", "nmi", "--model", "vae", "--results", "r")
    outcome = cli(*command, cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    runs = Store(tiny / "r").runs().values()
    with_nmi = Counter(run.record.settings["model"]["name"] for run in runs if "nmi" in run.metrics)
    assert with_nmi == {"vae": 2}


def test_metrics_missing_for_one_reason_are_printed_together(cli, tiny):
    shutil.rmtree(tiny / "r" / "artifacts")
    outcome = cli("evaluate", "--metrics", "nmi,ari", "--results", "r", cwd=tiny)
    lines = [line for line in outcome.stdout.splitlines() if "/4] " in line]
    assert len(lines) == 4
    assert all("; nmi, ari missing (" in line for line in lines)
    assert all(line.count("were not saved") == 1 for line in lines)


def test_images_are_decoded_once_and_the_first_run_reports_it(cli, tiny_text, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(tmp_path / "pets" / kind / f"{i}.png")
    # There are too few images to train on, which is found after decoding.
    (tmp_path / "g.yaml").write_text(tiny_text.replace("[digits]", "['folder:pets']"))
    for is_first in (True, False):
        outcome = cli("run", "--grid", "g.yaml", "--data", ".", cwd=tmp_path)
        assert "folder:pets has only 16 training images, got 128" in outcome.stderr
        assert ("decoding 20 images of pets" in outcome.stderr) == is_first, outcome.stderr


def test_a_failed_run_is_named_and_exits_with_1(cli, folder):
    options = ("--model", "vae", "--seeds", 1, "--set", "training.learning_rate=1e+30")
    outcome = cli("run", "--grid", "tiny.yaml", *options, "--quiet", cwd=folder)
    assert outcome.exit_status == 1
    progress, *_ = outcome.stdout.splitlines()
    assert progress.startswith("digits, VAE, L = 2, seed 0: diverged: ")
    assert "1 × diverged" in outcome.stdout
    assert "digits, VAE, L = 2, seed 0: diverged: " in outcome.stderr
    assert "--retry-failed repeats them" in outcome.stderr
    # The model has printed nothing.
    assert ".log" not in progress + outcome.stderr
    assert (folder / "results" / "local" / "records").is_dir()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--ray-gpus", "nan"),
        ("--ray-gpus", "inf"),
        ("--ray-gpus", "-1"),
        ("--time-limit", "0s"),
        ("--time-limit", "4000d"),
        ("--time-limit", "9" * 400 + "d"),
    ],
)
def test_numbers_without_bounds_are_refused_and_quoted_briefly(cli, tmp_path, option, value):
    outcome = cli("run", "--results", tmp_path / "r", option, value)
    assert outcome.exit_status == 2
    assert "expected a" in outcome.stderr
    assert len(outcome.stderr) < 2000
    assert not (tmp_path / "r").exists()


def test_metrics_that_cannot_be_loaded_are_refused_before_anything_is_trained(cli, folder):
    (folder / "bad.py").write_text("METRICS = {'bad': object(), 'worse': object()}\n")
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text.replace("[sc, accuracy]", "[sc, bad, worse]"))
    outcome = cli(*TINY_RUN, "--plugin", "bad.py", cwd=folder)
    assert outcome.exit_status == 2
    for name in ("bad", "worse"):
        assert f"the metric '{name}' of bad.py, of type object, lacks compute" in outcome.stderr
    assert "started" not in outcome.stdout
    assert not (folder / "r" / "records").exists()


def test_a_dry_run_with_retry_failed_counts_unsuccessful_runs_as_missing(
    cli, folder, tiny_grid, digits
):
    run = Run(next(iter(tiny_grid.cells)), 0, digits.digest)
    Store(folder / "r").add(Record.of(run, status="failed", error="out of luck"))
    totals = []
    for options in ([], ["--retry-failed"]):
        outcome = cli(*TINY_RUN, "--dry-run", *options, cwd=folder)
        assert outcome.exit_status == 0, outcome.stderr
        (total,) = (line for line in outcome.stdout.splitlines() if line.startswith("2 cells"))
        totals.append(total)
        assert ("out of luck" in outcome.stdout) == (not options)
    assert "3 missing, 0 to score, 1 failed or diverged" in totals[0]
    assert "4 missing, 0 to score, 0 failed or diverged" in totals[1]


def test_a_metric_that_is_named_twice_is_computed_and_printed_once(cli, tiny):
    outcome = cli("evaluate", "--metrics", "nmi, nmi", "--results", "r", cwd=tiny)
    assert outcome.exit_status == 0, outcome.stderr
    assert outcome.stdout.count("NMI") == 1


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--width", "2048", "1024"),
        ("--batch-size", "70000", "65536"),
        ("--latent-dim", "70000", "65536"),
        ("--model", "vea", "unknown model 'vea'"),
        ("--model", "vae:x", "takes no argument"),
        ("--model", "pythae:NoModel", "NoModel"),
        ("--dataset", "digits:x", "takes no argument"),
    ],
)
def test_speed_refuses_what_a_grid_refuses(cli, option, value, expected):
    outcome = cli("speed", option, value)
    assert outcome.exit_status == 2
    assert option in outcome.stderr
    assert expected in outcome.stderr


def test_speed_measures_models_with_an_argument_and_metrics_once(cli, monkeypatch):
    asked = []

    def stop(cells, data, metrics, *_, **__):
        asked.extend([[cell.model for cell in cells], metrics])
        raise SystemExit

    monkeypatch.setattr(measure, "measure_speed", stop)
    outcome = cli("speed", "--model", "pythae:RAE_L2", "--metrics", "sc,sc")
    assert outcome.exit_status == 0, outcome.stderr
    assert asked == [["pythae:RAE_L2"], ["sc"]]


def test_speed_prints_and_stores_the_same_json(cli, tmp_path, monkeypatch):
    contenders = {"suite": 300.0, "bare loop": 150.0, "pythae": 100.0}
    training = [measure.Throughput("vae", name, [turn]) for name, turn in contenders.items()]
    report = measure.SpeedReport({"cpu": "A CPU"}, {"steps": 4}, training, {"sc": 0.1}, 0.5, 1.5)
    monkeypatch.setattr(measure, "measure_speed", lambda *_, **__: report)
    outcome = cli("speed", "--json", "--results", tmp_path)
    assert outcome.exit_status == 0, outcome.stderr
    assert json.loads(outcome.stdout) == report.to_json()
    assert (tmp_path / "speed.json").read_text(encoding="utf-8") == outcome.stdout
