"""Registries, plug-ins that are installed, and plug-ins named with --plugin."""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from hgmvae_bench.evaluation.outputs import RunOutputs
from hgmvae_bench.plugins.local_files import (
    LocalPlugin,
    LocalPluginError,
    active_plugins,
    using_plugins,
)
from hgmvae_bench.plugins.protocols import ModelPlugin, PluginError, UnknownNameError
from hgmvae_bench.plugins.registry import METRICS, MODELS, Registry
from hgmvae_bench.storage.store import Store

TESTS = Path(__file__).parents[2]
DOCS = TESTS.parent / "docs/how-to"
HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")


class FakeEntryPoint(EntryPoint):
    """An entry point of a distribution that is not installed."""

    def __new__(cls, name, value, owner):
        return super().__new__(cls)

    def __init__(self, name, value, owner):
        super().__init__(name, value, "group")
        vars(self)["dist"] = SimpleNamespace(name=owner)


def registry(*entries):
    return Registry("model", "group", ModelPlugin, find=lambda group: entries)


def test_a_duplicate_name_names_both_owners():
    models = registry(
        FakeEntryPoint("vae", "ours:VAE", "ours"),
        FakeEntryPoint("vae", "theirs:VAE", "theirs"),
    )
    with pytest.raises(PluginError, match=r"'vae': ours \(ours:VAE\) and theirs \(theirs:VAE\)"):
        models.names()


def test_an_entry_point_listed_twice_is_no_duplicate():
    assert registry(
        FakeEntryPoint("vae", "a:V", "a"), FakeEntryPoint("vae", "a:V", "a")
    ).names() == ["vae"]


def test_an_unknown_name_raises_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"unknown model 'betavae'; did you mean beta-vae"):
        MODELS["betavae"]


def test_a_plugin_that_cannot_be_imported_names_its_owner():
    models = registry(FakeEntryPoint("broken", "no_such_module:MODEL", "theirs"))
    with pytest.raises(PluginError, match=r"'broken' of theirs .* No module named"):
        models["broken"]


def test_a_plugin_whose_module_exits_is_refused(tmp_path, monkeypatch):
    (tmp_path / "exiting_plugin.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    models = registry(FakeEntryPoint("broken", "exiting_plugin:MODEL", "theirs"))
    with pytest.raises(PluginError, match=r"'broken' of theirs cannot be loaded .* SystemExit: 3"):
        models["broken"]
    for name in ("exiting_plugin", str(tmp_path / "exiting_plugin.py")):
        with pytest.raises(
            LocalPluginError, match=r"exiting_plugin.* cannot be loaded: SystemExit"
        ):
            LocalPlugin.find(name).plugins()


def test_a_plugin_without_required_members_is_refused():
    models = registry(FakeEntryPoint("odd", "math:pi", "theirs"))
    with pytest.raises(
        PluginError, match="theirs, of type float, lacks build, reference, settings, "
    ):
        models["odd"]


def test_plugins_of_a_file_are_found_only_while_it_is_active(mean_plugin, tmp_path):
    file = tmp_path / "mean.py"
    file.write_text(mean_plugin)
    with using_plugins([LocalPlugin.find(str(file))]):
        assert METRICS["mean-code"].title == "Mean"
        assert "sc" in METRICS.names()
    assert "mean-code" not in METRICS.names()
    assert active_plugins() == ()


def test_an_edited_file_is_imported_again(mean_plugin, tmp_path):
    file = tmp_path / "mean.py"
    for title in ("Mean", "Average"):
        file.write_text(mean_plugin.replace('"Mean"', f'"{title}"'))
        with using_plugins([LocalPlugin.find(str(file))]):
            assert METRICS["mean-code"].title == title


def test_a_duplicate_name_in_a_file_names_the_file_and_the_package(mean_plugin, tmp_path):
    file = tmp_path / "mean.py"
    file.write_text(mean_plugin.replace("mean-code", "sc"))
    plugin = LocalPlugin.find(str(file))
    message = rf"two owners register the metric 'sc': hgmvae-bench \(.*:SC\) and {file} \(METRICS\)"
    with using_plugins([plugin]), pytest.raises(PluginError, match=message):
        METRICS["sc"]


def test_a_file_activated_twice_is_no_duplicate(mean_plugin, tmp_path):
    plugin = LocalPlugin(str(tmp_path / "mean.py"), mean_plugin)
    with using_plugins([plugin, plugin]):
        assert METRICS.names().count("mean-code") == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "must define MODELS, DATASETS or METRICS"),
        ("METRICS = [1]", "METRICS must map names to plug-ins, got list"),
        ("import no_such_module", "No module named 'no_such_module'$"),
        ("1 / 0", "ZeroDivisionError"),
        ("a b", "SyntaxError"),
    ],
)
def test_an_invalid_file_is_refused_with_its_name(tmp_path, code, message):
    file = tmp_path / "bad.py"
    file.write_text(code)
    with (
        pytest.raises(LocalPluginError, match=f"{file}.*{message}"),
        using_plugins([LocalPlugin(str(file), code)]),
    ):
        pass


def test_a_module_is_found_on_pythons_path(mean_plugin, tmp_path, monkeypatch):
    (tmp_path / "mean_module.py").write_text(mean_plugin)
    monkeypatch.syspath_prepend(tmp_path)
    with using_plugins([LocalPlugin.find("mean_module")]):
        assert METRICS["mean-code"].title == "Mean"
    with pytest.raises(LocalPluginError, match=r"no_such_module.*module on Python's path"):
        using_plugins([LocalPlugin.find("no_such_module")]).__enter__()


def grid_with(tiny_text, **names):
    """The tiny grid with other names in its table."""
    for key, value in names.items():
        tiny_text = re.sub(rf"{key}: \[.*\]", f"{key}: [{value}]", tiny_text)
    return tiny_text.replace("seeds: 2", "seeds: 1")


@pytest.fixture(scope="module")
def docs_code():
    """Examples of the page on plug-ins: a model, a dataset and a metric."""
    return re.findall(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def docs_model(docs_code):
    return docs_code[0]


def test_the_model_of_the_docs_has_twenty_lines(docs_model):
    lines = [line for line in docs_model.splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_model_of_the_docs_runs_and_is_unknown_without_its_file(
    cli, docs_model, tiny_text, tmp_path
):
    (tmp_path / "free_bits.py").write_text(docs_model)
    (tmp_path / "g.yaml").write_text(grid_with(tiny_text, models="free-bits", metrics="sc"))
    plugin = ("--plugin", "free_bits.py")

    done = cli("run", "--grid", "g.yaml", "--results", "r", *plugin, cwd=tmp_path)
    assert done.exit_status == 0, done.stderr + done.stdout
    (run,) = Store(tmp_path / "r").runs().values()
    record = run.record
    assert record.settings["model"] == {"name": "free-bits", "settings": {"floor": 0.5}}
    # Two latent dims at a floor of half a nat each.
    assert record.history["reg_loss"][-1] >= 1.0
    assert record.metrics["sc"].value is not None
    digest = hashlib.sha256(docs_model.encode()).hexdigest()
    assert record.provenance["plugins"] == {"free_bits.py": digest}

    table = cli("table", "1", "--results", "r", *plugin, cwd=tmp_path)
    assert table.exit_status == 0, table.stderr
    assert "Free bits" in table.stdout
    missed = cli("table", "1", "--results", "r", cwd=tmp_path)
    assert missed.exit_status == 2
    assert "unknown model 'free-bits'" in missed.stderr
    assert "name its file with --plugin" in missed.stderr
    assert "Traceback" not in missed.stderr


def test_the_dataset_and_the_metric_of_the_docs_run_in_a_grid(cli, docs_code, tiny_text, tmp_path):
    _, dataset, metric = docs_code
    (tmp_path / "corners.py").write_text(dataset)
    (tmp_path / "length.py").write_text(metric)
    text = grid_with(tiny_text, models="vae", datasets="corners", metrics="code-length, accuracy")
    (tmp_path / "g.yaml").write_text(text)
    plugins = ("--plugin", "corners.py", "--plugin", "length.py")
    done = cli("run", "--grid", "g.yaml", "--results", "r", *plugins, cwd=tmp_path)
    assert done.exit_status == 0, done.stderr + done.stdout
    (run,) = Store(tmp_path / "r").runs().values()
    length = run.record.metrics["code-length"]
    assert length.value is not None
    assert length.value > 0
    assert length.fingerprint == {"split": "test", "n_images": 64}


def test_the_docs_list_every_output_of_a_run():
    table = (DOCS / "plugins.md").read_text().split("| attribute |")[1].split("\n\n")[0]
    named = {
        name
        for line in table.splitlines()[2:]
        for name in re.findall(r"`(\w+)(?:\(.*?\))?`", line.split("|")[1])
    }
    fields = {field.name for field in dataclasses.fields(RunOutputs)}
    offered = {name for name in fields | vars(RunOutputs).keys() if not name.startswith("_")}
    # Metrics do not use the codec and the identity.
    assert named == offered - {"codec", "identity"}


def python_path(folder):
    """Value of PYTHONPATH with a folder before those that it has."""
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which pip has installed the example plug-in."""
    root = tmp_path_factory.mktemp("example")
    # pip builds in the source folder.
    shutil.copytree(TESTS / "example_plugin", root / "source")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", root / "site", "./source"],
        check=True,
        capture_output=True,
        cwd=root,
    )
    return root / "site"


def test_an_installed_package_adds_a_model_a_dataset_and_a_metric(installed, tiny_text, tmp_path):
    text = grid_with(
        tiny_text, models="vae, cv-vae", datasets="stripes", metrics="sc, participation-ratio"
    )
    (tmp_path / "g.yaml").write_text(text)
    done = subprocess.run(
        [HGMVAE_BENCH, "run", "--grid", "g.yaml", "--results", "r"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": python_path(installed)},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "CV-VAE" in done.stdout
    runs = [run.record for run in Store(tmp_path / "r").runs().values()]
    assert {run.settings["model"]["name"] for run in runs} == {"vae", "cv-vae"}
    for run in runs:
        ratio = run.metrics["participation-ratio"]
        assert ratio.value is not None
        assert 1 <= ratio.value <= 2
        assert ratio.fingerprint["n_images"] == 64


@pytest.mark.slow
@pytest.mark.extended
def test_an_installed_package_passes_the_contract_tests(installed):
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("-o", "addopts=--import-mode=importlib", TESTS / "contract"),
            *("-k", "cv-vae or stripes or participation-ratio"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": python_path(installed)},
    )
    assert outcome.returncode == 0, outcome.stdout
    passed = int(re.search(r"(\d+) passed", outcome.stdout)[1])
    assert passed >= 20, outcome.stdout
