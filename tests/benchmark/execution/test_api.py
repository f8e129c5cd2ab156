"""The Python interface: running, scoring, checking and planning grids."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import hgmvae_bench as hb
from hgmvae_bench.analysis.regression.check import CheckResult
from hgmvae_bench.data import ImageData
from hgmvae_bench.execution import backends, check, estimate
from hgmvae_bench.execution.plan import PlanError
from hgmvae_bench.execution.signals import StoppedError
from hgmvae_bench.execution.tasks import EpochEnded, Finished, Started
from hgmvae_bench.grid import GridError
from hgmvae_bench.plugins.objects import wrap_plugins
from hgmvae_bench.plugins.protocols import PluginError
from hgmvae_bench.plugins.registry import DATASETS, MODELS
from hgmvae_bench.utils.bounds import BoundsError

TINY = {
    "name": "api",
    "title": "One model",
    "seeds": 1,
    "network": {"width": 2},
    "training": {"epochs": 1, "batch_size": 64, "train_images": 128},
    "tables": [
        {
            "name": "1",
            "title": "Clustering",
            "datasets": ["digits"],
            "models": ["vae"],
            "latent_dims": [2],
            "metrics": ["sc"],
            "rows": ["metric"],
            "columns": ["model"],
        }
    ],
}


@pytest.fixture(scope="module")
def make_model():
    """A function that makes a VAE of a class that only this process knows."""

    def make(factor=1.0):
        class Scaled:
            title, reference, settings = "Scaled", "none", {}

            def __init__(self):
                self.factor = factor

            def build(self, *, settings, **rest):
                model = MODELS["vae"].build(settings={}, **rest)
                for parameter in model.parameters():
                    parameter.data *= self.factor
                return model

        return Scaled()

    return make


class Halved:
    """The digits at half their brightness."""

    title, reference, channels, image_size = "Half", "none", 1, 32
    reconstruction_loss = "bce"

    def load(self, root, *, image_size):
        data = DATASETS["digits"].load(root, image_size=image_size)
        return ImageData(
            train_images=data.train_images // 2,
            train_labels=data.train_labels,
            test_images=data.test_images // 2,
            test_labels=data.test_labels,
            class_names=data.class_names,
        )


class MeanCode:
    title, reference, direction, cost, needs = "Mean", "none", "lower", "cheap", ("codes",)
    range = (float("-inf"), float("inf"))

    def compute(self, outputs):
        return float(outputs.test_codes.mean())

    def fingerprint(self, outputs):
        return {"n_images": len(outputs.test_images)}


class Recorder:
    """Reporter that appends the events to a list."""

    def __init__(self, events):
        self.on_event = events.append

    def on_plan(self, plan):
        pass


@pytest.fixture(scope="module")
def run_once(tmp_path_factory, make_model):
    """Results of the grid with a passed model, dataset and metric, and the events."""
    events = []
    grid = {**TINY, "metrics": ["mean-code"]}
    grid["tables"] = [{**TINY["tables"][0], "datasets": ["half"]}]
    passed = {
        "models": {"mine": make_model()},
        "datasets": {"half": Halved()},
        "metrics": {"mean-code": MeanCode()},
    }
    folder = tmp_path_factory.mktemp("api")
    results = hb.run_grid(
        grid, results=folder, workers=1, device="cpu", reporters=[Recorder(events)], **passed
    )
    return results, events, grid, passed


def test_run_grid_trains_passed_objects_in_worker_processes(run_once):
    results, events, _, _ = run_once
    assert [run.record.status for run in results.runs] == ["complete"] * 2
    models = [run.record.settings["model"]["name"] for run in results.runs]
    assert models == ["vae", "mine"]
    assert {run.record.settings["dataset"]["name"] for run in results.runs} == {"half"}
    counts = [sum(isinstance(e, kind) for e in events) for kind in (Started, EpochEnded, Finished)]
    assert counts == [2, 2, 2]


def test_the_provenance_names_the_passed_objects_and_their_digests(run_once):
    results, _, _, passed = run_once
    expected = {plugin.name: plugin.digest for plugin in wrap_plugins(**passed)}
    assert expected.keys() == {"model mine", "dataset half", "metric mean-code"}
    for run in results.runs:
        assert run.record.provenance["plugins"] == expected
        assert run.record.provenance["grid"]["name"] == "api"


SETS = """
from hgmvae_bench.plugins.objects import wrap_plugins

class Spread:
    title, reference, direction, cost, needs = "Spread", "none", "lower", "cheap", ("codes",)
    range = (0.0, float("inf"))

    def __init__(self):
        self.used = {"mean", "scale", "rest"}
        self.nested = {"of": [frozenset({"a", "b", "c"})]}

    def compute(self, outputs):
        return 1.0

    def fingerprint(self, outputs):
        return {}

[plugin] = wrap_plugins(metrics={"spread": Spread()})
print(plugin.digest)
"""


def test_the_digest_of_an_object_does_not_depend_on_the_order_of_its_sets(tmp_path):
    """A new process orders sets of strings anew, and has to recognise the object on resumption."""
    (tmp_path / "sets.py").write_text(SETS)
    digests = {
        subprocess.run(
            [sys.executable, tmp_path / "sets.py"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_results_read_tables_frames_and_exports_from_the_folder(run_once, tmp_path):
    results, *_ = run_once
    table = results.table("1")
    assert set(table.values["model"]) == {"vae", "mine"}
    assert results.tables().keys() == {"1"}
    assert set(results.frame()["metric"]) == {"sc", "mean-code"}
    assert set(results.history()["model"]) == {"vae", "mine"}
    assert results.compare().empty
    assert tmp_path / "tables.tex" in results.export(tmp_path)
    assert "Scaled" in results.report(tmp_path / "report.html", figures=())
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert repr(results).endswith("grid='api')")


def test_the_same_call_trains_nothing_again(run_once):
    results, _, grid, passed = run_once
    events = []
    again = hb.run_grid(
        grid, results=results.path, device="cpu", reporters=[Recorder(events)], **passed
    )
    assert events == []
    assert len(again.runs) == 2


def test_a_changed_model_object_under_the_same_name_is_refused(run_once, make_model):
    results, _, grid, passed = run_once
    changed = {**passed, "models": {"mine": make_model(factor=0.5)}}
    options = {"results": results.path, "device": "cpu", **changed}
    for call in (
        lambda: hb.run_grid(grid, **options),
        lambda: hb.plan_grid(grid, **options),
        lambda: hb.evaluate_grid(["nmi"], grid="api", **options),
    ):
        with pytest.raises(PlanError, match=r"mine.*attributes differ"):
            call()


def test_an_object_that_cannot_be_used_is_refused_with_its_name(make_model):
    model = make_model()
    model.lock = threading.Lock()
    with pytest.raises(PluginError, match=r"model 'mine'.*cannot be sent to worker processes"):
        hb.run_grid(TINY, models={"mine": model})
    with pytest.raises(PluginError, match=r"metric 'm'.*lacks .*compute"):
        hb.run_grid(TINY, metrics={"m": object()})
    with pytest.raises(PluginError, match=r"'mine' is a class"):
        hb.run_grid(TINY, models={"mine": type(make_model())})
    with pytest.raises(GridError, match="two owners register the model 'vae'"):
        hb.run_grid(TINY, models={"vae": make_model()}, device="cpu")


def test_evaluate_grid_computes_a_metric_of_finished_runs(run_once):
    results, _, _, passed = run_once
    events = []
    evaluated = hb.evaluate_grid(
        ["nmi"],
        results=results.path,
        device="cpu",
        workers=1,
        reporters=[Recorder(events)],
        **passed,
    )
    assert not any(isinstance(event, EpochEnded) for event in events)
    assert all(run.metrics["nmi"].value is not None for run in evaluated.runs)


class FromEnvironment:
    """A metric whose value is an environment variable."""

    title, reference, direction, cost, needs = "Variable", "none", "lower", "cheap", ("codes",)
    range = (0.0, 10.0)

    def __init__(self, variable):
        self.variable = variable

    def compute(self, outputs):
        return float(os.environ[self.variable])

    def fingerprint(self, outputs):
        return {}


def test_workers_have_variables_that_are_set_after_the_first_grid(run_once, monkeypatch):
    done, _, _, passed = run_once  # This grid has started the fork server.
    monkeypatch.setenv("LATE_VARIABLE", "2")
    metrics = {**passed["metrics"], "late": FromEnvironment("LATE_VARIABLE")}
    results = hb.evaluate_grid(
        ["late"], results=done.path, device="cpu", workers=1, **{**passed, "metrics": metrics}
    )
    assert {run.metrics["late"].value for run in results.runs} == {2.0}


def test_a_grid_can_be_made_of_a_mapping_and_names_the_key_of_an_error():
    assert hb.make_grid(TINY).spec.seeds == 1
    assert hb.make_grid("smoke").spec.name == "smoke"
    spec = hb.GridSpec.model_validate(TINY)
    assert hb.make_grid(spec) == hb.make_grid(spec)
    with pytest.raises(GridError, match="grid: seeds: "):
        hb.make_grid({**TINY, "seeds": 0})
    with pytest.raises(GridError, match=r"grid: tables\[0\]\.models\[0\]: unknown model 'vea'"):
        hb.make_grid({**TINY, "tables": [{**TINY["tables"][0], "models": ["vea"]}]})
    with pytest.raises(GridError, match=r"grid: seed: unknown key 'seed'; did you mean seeds\?"):
        hb.make_grid({**TINY, "seed": 3})
    with pytest.raises(GridError, match=r"grid: tables\[0\]\.models: this key is required"):
        table = {key: value for key, value in TINY["tables"][0].items() if key != "models"}
        hb.make_grid({**TINY, "tables": [table]})


def test_check_grid_returns_the_outcome_or_raises_with_it(tmp_path, monkeypatch):
    grid = {**TINY, "seeds": 3}
    options = {"results": tmp_path / "r", "device": "cpu", "workers": 1}
    baseline = hb.update_baseline(grid, baseline=tmp_path / "b.json", **options)
    assert len(baseline.cells) == 1
    outcome = hb.check_grid(grid, baseline=tmp_path / "b.json", **options)
    assert (outcome.shifts, outcome.missing, outcome.n_reused) == ([], [], 3)
    assert "3 of 3 runs were recorded before" in str(outcome)
    monkeypatch.setattr(
        check, "compare_with_baseline", lambda *_: CheckResult([], ["vae: not run"])
    )
    with pytest.raises(hb.RegressionError, match="vae: not run") as error:
        hb.check_grid(grid, baseline=tmp_path / "b.json", **options)
    assert error.value.outcome.missing == ["vae: not run"]
    assert error.value.exit_status == 1


def test_check_grid_counts_runs_that_only_lacked_a_metric_as_reused(tmp_path):
    trained = {**TINY, "seeds": 3}
    table = {**TINY["tables"][0], "metrics": ["sc", "ch"]}
    options = {"results": tmp_path / "r", "device": "cpu", "workers": 1}
    hb.run_grid(trained, controls=False, **options)
    grid = {**trained, "tables": [table]}
    hb.update_baseline(grid, baseline=tmp_path / "b.json", **{**options, "results": tmp_path / "s"})
    outcome = hb.check_grid(grid, baseline=tmp_path / "b.json", **options)
    assert (outcome.n_reused, outcome.n_runs) == (3, 3)


@pytest.mark.parametrize("workers", [1, 8])
def test_plan_grid_asks_an_executor_object_for_its_workers_and_threads(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(backends, "available_cores", lambda: 16)
    before, threads = torch.get_num_threads(), []

    def step_seconds(_):
        threads.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(estimate, "time_step", step_seconds)
    survey = hb.plan_grid(
        TINY, results=tmp_path / "r", device="cpu", executor=backends.LocalExecutor(workers)
    )
    # Two steps of one second.
    assert (survey.workers, survey.seconds) == (workers, 2 / workers)
    assert threads == [16 // workers]
    assert torch.get_num_threads() == before


def test_plan_grid_trains_nothing(tmp_path):
    survey = hb.plan_grid(TINY, results=tmp_path / "r", device="cpu", workers=1)
    assert [cell.missing for cell in survey.cells] == [1]
    assert not (tmp_path / "r").exists()


def test_stopping_ends_the_grid_with_an_error_that_says_how_to_continue(tmp_path):
    grid = {**TINY, "seeds": 2, "training": {**TINY["training"], "epochs": 200}}
    seen = []
    with pytest.raises(StoppedError, match="call me again"):
        hb.run_grid(
            grid,
            results=tmp_path,
            device="cpu",
            workers=1,
            reporters=[Recorder(seen)],
            stopping=lambda: any(isinstance(event, EpochEnded) for event in seen),
            advice="call me again",
        )
    assert hb.Results(tmp_path).runs == []


def test_importing_the_package_takes_milliseconds_and_imports_nothing_heavy():
    code = (
        "import time, sys; start = time.process_time(); import hgmvae_bench as hb; "
        "print(time.process_time() - start); "
        "print({'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)); "
        "hb.load_results; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.splitlines()
    assert imported == ["set()", "False"]
    assert float(seconds) < 0.3


PUBLIC_NAMES = [
    *("Grid", "GridSpec", "RegressionError", "Results", "check_grid", "evaluate_grid"),
    *("load_grid", "load_history", "load_results", "make_grid", "plan_grid", "published"),
    *("run_grid", "update_baseline"),
]


def test_the_public_names_are_those_that_the_package_imports_lazily():
    assert sorted(hb._MODULES) == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(hb))


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_imported(name):
    assert getattr(hb, name).__name__ == name


def test_metrics_of_a_table_are_named_at_least_once_and_shown_once(run_once):
    results, *_ = run_once
    assert set(results.table("1", metrics=["sc", "sc"]).values["metric"]) == {"sc"}
    for use in (lambda: results.table("1", metrics=[]), lambda: hb.evaluate_grid([])):
        with pytest.raises(GridError, match=r"metrics: expected .* at least one metric"):
            use()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("workers", -1, "an integer of at least 1, got -1"),
        ("workers", 0, "an integer of at least 1, got 0"),
        ("workers", 1.5, "an integer of at least 1, got 1.5"),
        ("workers", True, "an integer of at least 1, got True"),
        ("time_limit", 0, "seconds above 0 .* got 0"),
        ("time_limit", float("nan"), "seconds above 0 .* got nan"),
        ("time_limit", float("inf"), "seconds .* at most 315360000, got inf"),
        ("time_limit", "30m", "seconds above 0 .* got '30m'"),
    ],
)
def test_numbers_out_of_bounds_are_refused_before_anything_is_trained(
    tmp_path, option, value, expected
):
    for call in (hb.run_grid, hb.plan_grid):
        with pytest.raises(BoundsError, match=f"^{option}: expected {expected}$"):
            call(TINY, results=tmp_path / "r", device="cpu", **{option: value})
    assert not (tmp_path / "r").exists()


def test_an_option_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected options: speed_up"):
        hb.run_grid(TINY, results=tmp_path, speed_up=2)
    assert list(tmp_path.iterdir()) == []
