import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")


def cli(*arguments, cwd=None, timeout=120, **environment):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [HGMVAE_BENCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=environment,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_text):
    """A folder with the tiny grid's file and the outcome of running it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(tiny_text)
    return folder, cli("run", "--grid", "tiny.yaml", "--results", "r", cwd=folder)


def test_a_run_ends_with_the_tables_on_the_terminal_and_the_files_on_disk(tiny):
    folder, outcome = tiny
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0] == "4 runs: 4 to train, 0 to score, 0 done"
    assert sum(line.endswith("started") for line in lines) == 4
    assert sum("[4/4]" in line for line in lines) == 1
    assert "Table 1. Clustering" in lines
    assert "\x1b" not in outcome.stdout
    tables = {path.name for path in (folder / "r" / "tables" / "tiny").iterdir()}
    assert tables == {"table-1.txt", "table-1.csv", "table-1.tex"}
    assert len(list((folder / "r" / "records").iterdir())) == 4


def test_the_second_run_trains_nothing_and_says_so_within_seconds(tiny):
    folder, _ = tiny
    start = time.perf_counter()
    outcome = cli("run", "--grid", "tiny.yaml", "--results", "r", cwd=folder)
    # Under ten on an idle machine; tests run beside each other.
    assert time.perf_counter() - start < 30
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("4 runs: nothing to train, 4 done\n")
    assert "started" not in outcome.stdout


@pytest.mark.parametrize(
    ("name", "start"), [("text", "Table 1."), ("csv", "table,"), ("latex", "%")]
)
def test_a_table_in_every_format(tiny, name, start):
    folder, _ = tiny
    outcome = cli("table", "1", "--results", "r", "--format", name, cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(start)


def test_a_failed_run_exits_with_1(tiny_text, tmp_path):
    (tmp_path / "g.yaml").write_text(
        tiny_text.replace("1, batch", "1, learning_rate: 1.0e+30, batch")
    )
    outcome = cli("run", "--grid", "g.yaml", "--model", "vae", "--seeds", 1, cwd=tmp_path)
    assert outcome.returncode == 1
    assert "diverged" in outcome.stdout
    assert "1 × diverged" in outcome.stdout
    assert (tmp_path / "results" / "local" / "records").is_dir()


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
        (
            ["run", "--grid", "small", "--data", "nowhere"],
            "hgmvae-bench data fetch mnist --data nowhere",
        ),
        (["table", "1", "--results", "nowhere"], "no results in nowhere; fill it with"),
        (["list", "model"], "'model' is not one of"),
        (["tabel"], "No such command 'tabel'"),
    ],
)
def test_bad_usage_exits_with_2_and_one_clear_message(tmp_path, arguments, message):
    outcome = cli(*arguments, cwd=tmp_path)
    assert outcome.returncode == 2
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["run"], ["list"], ["table"]])
def test_help_explains_every_command(command):
    outcome = cli(*command, "--help")
    assert outcome.returncode == 0
    assert "--help" in outcome.stdout


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", ["vae", "gmvae", "hgmvae-g", "hgmvae-u-nofisher"]),
        ("datasets", ["digits", "mnist", "celeba"]),
        ("metrics", ["sc", "svm-accuracy", "ms-ssim"]),
        ("grids", ["smoke", "small", "paper"]),
    ],
)
def test_list_knows_what_is_registered(kind, names):
    outcome = cli("list", kind)
    listed = [line.split()[0] for line in outcome.stdout.splitlines() if not line.startswith(" ")]
    assert set(names) <= set(listed)


def test_lists_and_help_do_not_wait_for_torch():
    code = (
        "import sys; from hgmvae_bench.cli import Kind, _listing\n"
        "for kind in Kind: _listing(kind)\n"
        "print({'torch', 'pythae', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout == "set()\n"
