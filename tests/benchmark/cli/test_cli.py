import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hgmvae_bench.cli import app

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


def cpu_seconds():
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def invoke(*arguments):
    """The same in this process, where what tables need has been imported."""
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def tiny(tiny_run, tmp_path):
    """A folder with the tiny grid's file and what running it left."""
    return shutil.copytree(tiny_run, tmp_path / "tiny")


def test_a_run_ends_with_the_tables_on_the_terminal_and_the_files_on_disk(tiny):
    stdout = (tiny / "stdout").read_text()
    lines = stdout.splitlines()
    assert lines[0] == "4 runs: 4 to train, 0 to score, 0 done"
    assert sum(line.endswith("started") for line in lines) == 4
    assert sum("[4/4]" in line for line in lines) == 1
    assert "Table 1. Clustering" in lines
    assert "\x1b" not in stdout
    tables = {path.name for path in (tiny / "r" / "tables" / "tiny").iterdir()}
    assert tables == {f"table-1.{suffix}" for suffix in ("txt", "csv", "md", "tex")}
    assert len(list((tiny / "r" / "records").iterdir())) == 4


@pytest.mark.parametrize(("where", "reason"), [("cpu", "a CPU"), ("ray", "Ray")])
def test_seeds_that_are_not_trained_together_are_not_stacked(tmp_path, where, reason):
    how = ["--executor", "ray"] if where == "ray" else ["--device", "cpu"]
    outcome = invoke("run", "--grid", "smoke", "--stack-seeds", *how, "--results", tmp_path)
    assert outcome.exit_code == 2
    assert "Invalid value for --stack-seeds" in outcome.output
    assert f"every seed has a process of its own on {reason}; leave it out" in " ".join(
        outcome.output.replace("│", " ").split()
    )
    assert list(tmp_path.iterdir()) == []


def test_the_second_run_trains_nothing_and_says_so_within_seconds(tiny):
    before = cpu_seconds()
    outcome = cli("run", "--grid", "tiny.yaml", "--results", "r", cwd=tiny)
    # Its processor time: by the clock it takes as long as what runs beside the tests lets it.
    assert cpu_seconds() - before < 20
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("4 runs: nothing to train, 4 done\n")
    assert "started" not in outcome.stdout


def test_a_run_says_that_it_decodes_images_the_first_time_only(tiny_text, tmp_path):
    from PIL import Image

    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(tmp_path / "pets" / kind / f"{i}.png")
    # Refused for its few images once they are decoded: nothing needs to be trained here.
    text = tiny_text.replace("[digits]", "['folder:pets']")
    (tmp_path / "g.yaml").write_text(text)
    said = "decoding 20 images of pets once, into"
    for is_first in (True, False):
        outcome = cli("run", "--grid", "g.yaml", "--data", ".", cwd=tmp_path)
        assert "folder:pets has only 16 training images, got 128" in outcome.stderr
        assert (said in outcome.stderr) == is_first, outcome.stderr


@pytest.mark.parametrize(
    ("name", "start"),
    [("text", "Table 1."), ("csv", "table,"), ("markdown", "**Table 1."), ("latex", "%")],
)
def test_a_table_in_every_format(tiny, name, start):
    outcome = invoke("table", "1", "--results", tiny / "r", "--format", name)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith(start)


def test_a_run_leaves_controls_that_a_table_shows_on_demand(tiny):
    assert len(list((tiny / "r" / "controls").iterdir())) == 1  # neither SC nor k-means of noise
    assert "PCA" not in (tiny / "stdout").read_text()
    outcome = invoke("table", "1", "--controls", "--results", tiny / "r")
    assert outcome.exit_code == 0, outcome.output
    assert "PCA (control)" in outcome.stdout


def test_a_failed_run_exits_with_1(tiny_text, tmp_path):
    (tmp_path / "g.yaml").write_text(
        tiny_text.replace("1, batch", "1, learning_rate: 1.0e+30, batch")
    )
    outcome = cli("run", "--grid", "g.yaml", "--model", "vae", "--seeds", 1, cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stdout.startswith("1 run: 1 to train,")
    assert "diverged" in outcome.stdout
    assert "1 × diverged" in outcome.stdout
    # It has said nothing.
    assert ".log)" not in outcome.stdout
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
        "import sys; from hgmvae_bench.cli.show import Kind, listing\n"
        "for kind in Kind: listing(kind)\n"
        "print({'torch', 'pythae', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout == "set()\n"


def test_a_list_of_models_loads_neither_grids_nor_figures():
    code = (
        "import sys; from hgmvae_bench.cli.show import Kind, listing; listing(Kind.models)\n"
        "heavy = {'yaml', 'rich', 'hgmvae_bench.storage.store', 'hgmvae_bench.analysis.figures'}\n"
        "print(heavy & set(sys.modules))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout == "set()\n"


def test_export_writes_every_table_and_every_value(tiny):
    outcome = invoke("export", "--results", tiny / "r", "--output", tiny / "e")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith(f"6 files in {tiny / 'e'}")
    for suffix in ("csv", "md", "tex", "txt"):
        name = f"table-1.{suffix}"
        written, printed = (tiny / path / name for path in ("e", "r/tables/tiny"))
        assert written.read_text() == printed.read_text()
    values = pd.read_parquet(tiny / "e" / "values.parquet")
    assert len(values) == 4 * 2


def test_a_table_that_the_paper_lacks_cannot_be_compared_with_it(tiny):
    outcome = cli("table", "1", "--results", "r", "--compare", "paper", cwd=tiny)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith("error: the paper has no value of any cell of table 1")
