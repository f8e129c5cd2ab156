"""Usage of the command line: help, options, messages, exit statuses and start-up."""

import re
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
import yaml

from hgmvae_bench.analysis.figures import FIGURES
from hgmvae_bench.cli import app
from hgmvae_bench.grid import grid_names, load_grid
from hgmvae_bench.plugins.registry import DATASETS, METRICS, MODELS
from hgmvae_bench.utils.code_version import PACKAGE, code_version

ROOT = Path(__file__).parents[3]

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")
CPU_RUN = ("run", "--grid", "tiny.yaml", "--results", "r", "--device", "cpu")


def commands(command=None, path=()):
    """Every command with its words, groups included."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands())


def imported(code, modules):
    """Which of some modules a fresh interpreter has imported after ``code``."""
    code = f"import sys\n{code}\nprint(sorted({set(modules)!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_a_help_text(cli, path):
    command = COMMANDS[path]
    assert command.help
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    outcome = cli(*path, "--help", columns=80)
    assert outcome.exit_status == 0
    assert outcome.stderr == ""
    assert "<bool>" not in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert max(parameter.opts, key=len) in outcome.stdout


def test_the_version_is_that_of_the_citation_and_names_the_commit(cli):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    code = code_version(PACKAGE)
    line = rf"hgmvae-bench {re.escape(cited)}"
    if code is not None:
        line += rf" \(commit {code['commit'][:10]}( with uncommitted changes)?\)"
    assert re.fullmatch(line + "\n", cli("--version").stdout)
    assert version("hgmvae-bench") == cited


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--grid", "smoek"], "unknown grid 'smoek'; did you mean smoke?"),
        (["run", "--grid", "smoke", "--model", "hgmvae"], "did you mean hgmvae-"),
        (["run", "--grid", "smoke", "--dataset", "digit"], "did you mean digits?"),
        (["run", "--grid", "smoke", "--latent-dim", "5"], "unknown latent_dim of grid smoke '5'"),
        (["run", "--grid", "smoke", "--seeds", "0"], "--seeds"),
        (["run", "--grid", "none.yaml"], "cannot read grid file none.yaml"),
        (["run"], "Missing option '--grid'"),
        (["run", "--grid", "smoke", "--device", "tpu"], "'tpu' is not one of"),
        (["run", "--grid", "smoke", "--time-limit", "soon"], "90s, 30m, 12h or 2d, got 'soon'"),
        (["run", "--grid", "smoke", "--set", "epochs"], "KEY=VALUE"),
        (["run", "--grid", "smoke", "--set", "training.epoch=5"], "did you mean training.epochs"),
        (["run", "--grid", "smoke", "--set", "training.epochs=no"], "training.epochs"),
        (["run", "--grid", "smoke", "--set", "model.beat=2"], "model.beta"),
        (
            ["run", "--grid", "small", "--data", "nowhere"],
            "hgmvae-bench data fetch mnist --data nowhere",
        ),
        (["table", "1", "--results", "nowhere"], "no results in nowhere"),
        (["compare", "nowhere", "elsewhere"], "nowhere"),
        (["list", "model"], "'model' is not one of"),
        (["tabel"], "No such command 'tabel'"),
    ],
)
def test_bad_usage_exits_with_2_and_one_clear_message(cli, tmp_path, arguments, message):
    outcome = cli(*arguments, cwd=tmp_path)
    assert outcome.exit_status == 2
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_seeds_are_stacked_on_a_local_gpu_only(cli, tmp_path, executor):
    options = ("--executor", executor, "--device", "cpu", "--stack-seeds", "--results", tmp_path)
    outcome = cli("run", "--grid", "smoke", *options)
    assert outcome.exit_status == 2
    assert "stack" in outcome.stderr
    assert "cuda" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--help", "--seeds"])
def test_reading_options_neither_imports_plugins_nor_connects(cli, tmp_path, option, monkeypatch):
    (tmp_path / "plugin.py").write_text("open('imported', 'w').close()\nMODELS = {}\n")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    options = ("--plugin", "plugin.py", "--results", "s3://bucket/folder", "--track", "mlflow")
    value = ["no number"] if option == "--seeds" else []
    outcome = cli("run", "--grid", "smoke", *options, option, *value, cwd=tmp_path)
    assert outcome.exit_status == (0 if option == "--help" else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["plugin.py"]


def test_an_error_is_red_on_a_terminal_only_and_never_with_no_color(cli):
    command = ("run", "--grid", "none.yaml")
    assert "\x1b[31m" in cli(*command, terminal=True, NO_COLOR=None).stderr
    assert "\x1b" not in cli(*command, terminal=True).stderr
    assert "\x1b" not in cli(*command, NO_COLOR=None).stderr


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        ("models", {name: MODELS[name].title for name in MODELS}),
        ("datasets", {name: DATASETS[name].title for name in DATASETS}),
        ("metrics", {name: METRICS[name].title for name in METRICS}),
        ("grids", {name: load_grid(name).spec.title for name in grid_names()}),
        ("figures", {name: figure.title for name, figure in FIGURES.items()}),
    ],
)
def test_list_prints_every_registered_name_with_its_title(cli, kind, titles):
    heads, *lines = cli("list", kind).stdout.splitlines()
    assert heads.split()[:2] == ["name", "title"]
    printed = dict(line.split(maxsplit=1) for line in lines)
    assert printed.keys() == titles.keys()
    assert [name for name, title in titles.items() if not printed[name].startswith(title)] == []


def test_lists_do_not_import_torch():
    code = (
        "from typing import get_args\n"
        "from hgmvae_bench.cli.show import Kind, list_rows\n"
        "for kind in get_args(Kind): list_rows(kind)"
    )
    assert imported(code, ["torch", "pythae", "sklearn", "pandas", "matplotlib"]) == "[]\n"


def test_a_list_of_models_imports_neither_grids_nor_figures():
    code = "from hgmvae_bench.cli.show import list_rows; list_rows('models')"
    heavy = ["yaml", "rich", "hgmvae_bench.storage.store", "hgmvae_bench.analysis.figures"]
    assert imported(code, heavy) == "[]\n"


def test_the_installed_command_repeats_nothing_within_seconds(tiny):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = subprocess.run(
        [HGMVAE_BENCH, *CPU_RUN], cwd=tiny, capture_output=True, text=True, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because the elapsed time depends on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("4 runs: nothing to train, 4 complete\n")
    assert "started" not in outcome.stdout
