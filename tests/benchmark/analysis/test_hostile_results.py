"""Commands on hostile results folders execute nothing, lose nothing and do not crash."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest

from hgmvae_bench.analysis.leaderboard import leaderboards
from hgmvae_bench.cli import main
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record
from hgmvae_bench.storage.store import Store

HOSTILE = "</script><svg onload=alert(1)> \\input{/etc/passwd} \\write18{touch pwned} $x_{ `id`"
HIDDEN = "\x00\x1b[31m\u202e"

GRID = """
name: tiny
title: TITLE
seeds: 3
network: { width: 2 }
models: { vae: { title: TITLE } }
training: { epochs: 1, batch_size: 64, train_images: 128 }
tables:
  - name: "1"
    title: TITLE
    datasets: [digits]
    models: [vae, wae-imq]
    latent_dims: [2]
    metrics: [sc, accuracy]
    rows: [metric]
    columns: [model]
"""

COMMANDS = {
    "table": ["table", "1", "--controls", "--results", "R"],
    "table as LaTeX": ["table", "1", "--all-metrics", "--format", "latex", "--results", "R"],
    "export": ["export", "--controls", "--output", "OUT/tables", "--results", "R"],
    "report": ["report", "--figures", "records", "--output", "OUT/report.html", "--results", "R"],
    "compare": ["compare", "R", "R"],
    "figure": ["figure", "training", "--output", "OUT/figures", "--results", "R"],
}


def command(name, folder):
    """Exit status of a command on a results folder."""
    places = {"R": str(folder / "r"), "OUT": str(folder / "out")}
    arguments = [places.get(part, part.replace("OUT", places["OUT"], 1)) for part in COMMANDS[name]]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def hostile_record(grid, cell, seed, **changes):
    text = HOSTILE + HIDDEN
    content = {
        "status": "complete",
        "metrics": {
            "sc": MetricValue(value=0.5 + seed, fingerprint={text: text}),
            "accuracy": MetricValue(missing=text),
            text: MetricValue(value=1.0),
        },
        "history": {"loss": [2.0, 1.5], text: [1.0, 2.0]},
        "seconds": {"training": 1.5, text: 1.0},
        "provenance": {"cpu": text, "python": text, "plugins": {text: None}, text: [text]},
        **changes,
    }
    return Record.of(Run(cell, seed, "d"), **content)


@pytest.fixture
def folder(tmp_path):
    """Results of a grid whose titles, messages, keys and values are hostile."""
    grid = parse_grid(GRID.replace("TITLE", json.dumps(HOSTILE)), "tiny.yaml")
    store = Store(tmp_path / "r")
    store.add_grid(grid)
    for cell in grid.cells:
        for seed in (0, 1):
            store.add(hostile_record(grid, cell, seed))
        store.add(hostile_record(grid, cell, 2, status="failed", error=HOSTILE + HIDDEN))
    store.add_control(
        ControlRecord(
            key="digits_mean-image_0",
            control="mean-image",
            title=HOSTILE + HIDDEN,
            dataset="digits",
            image_size=32,
            train_images=128,
            data_digest="d",
            latent_dim=None,
            comparable=True,
            metrics={
                "sc": MetricValue(value=0.25, fingerprint={HOSTILE + HIDDEN: HOSTILE + HIDDEN})
            },
        )
    )
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_hostile_folder_is_shown_escaped(folder, name, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    assert command(name, folder) == 0
    out, err = capfd.readouterr()
    written = [out, err]
    for path in sorted((folder / "out").rglob("*")):
        if path.suffix in {".csv", ".md", ".tex", ".txt", ".html", ".svg"}:
            written.append(path.read_text(encoding="utf-8"))
        if path.suffix == ".html":
            assert "<svg onload" not in written[-1]
        if path.suffix == ".tex":
            assert "\\write18" not in written[-1]
            assert "\\input{/etc" not in written[-1]
    for text in written:
        assert not set(text) & set("\x00\x1b\u202e")
        assert "Traceback" not in text
    assert not (folder / "pwned").exists()


def edit(path, change):
    """Change a record and renew its hash."""
    content = json.loads(path.read_bytes())["content"]
    change(content)
    body = json.dumps(content, indent=1).encode()
    sha256 = hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(b'{"sha256": "%s", "content":\n%s\n}\n' % (sha256, body))


CHANGES = {
    "a large value": lambda c: c["metrics"]["sc"].update(value=1.7e308),
    "large losses": lambda c: c["history"].update(loss=[1.7e308, -1.7e308]),
    "no losses": lambda c: c["history"].update(loss=[]),
    "large times": lambda c: c["seconds"].update(training=1.7e308, scoring=1.7e308),
    "a large number of parameters": lambda c: c.update(n_parameters=10**400),
    "a large seed": lambda c: c.update(seed=10**400),
    "a large latent dim": lambda c: c["settings"].update(latent_dim=10**400),
    "a latent dim as text": lambda c: c["settings"].update(latent_dim="2"),
    "a dataset as a list": lambda c: c["settings"]["dataset"].update(name=["digits"]),
    "a date in another zone": lambda c: c.update(finished_at="2026-01-01T00:00:00+05:30"),
    "the last date": lambda c: c.update(finished_at="9999-12-31T23:59:59-14:00"),
    "the first date": lambda c: c.update(finished_at="0001-01-01T00:00:00+14:00"),
    "hardware as a mapping": lambda c: c["provenance"].update(gpu={"a": 1}, cpu=["b"]),
    "a version as a list": lambda c: c["provenance"].update(python=[3, 11], device=7),
    "an unclear state of the code": lambda c: c["provenance"].update(
        code={"commit": "0", "dirty": "yes"}
    ),
    "plugins that are null": lambda c: c["provenance"].update(plugins=None),
    "memory as text": lambda c: c["provenance"].update(stages={"training": {"peak_bytes": "12"}}),
    "a nested provenance": lambda c: c["provenance"].update(deep=json.loads("[" * 150 + "]" * 150)),
    "a cell of another identity": lambda c: c.update(cell="../../x"),
}


# Three at a time, each of a record of its own; the fourth complete record stays as it is.
CHANGED_TOGETHER = [list(CHANGES)[i : i + 3] for i in range(0, len(CHANGES), 3)]


@pytest.mark.parametrize("changes", CHANGED_TOGETHER, ids=", ".join)
def test_records_edited_with_new_hashes_crash_no_command(folder, changes, capfd):
    complete = sorted((folder / "r" / "records").glob("*_s[01]_*.json"))
    assert len(complete) == 4
    for path, change in zip(complete, changes, strict=False):
        edit(path, CHANGES[change])
    statuses = {name: command(name, folder) for name in COMMANDS}
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    # Losses that span all floats cannot be drawn.
    assert statuses.pop("figure") == (2 if "large losses" in changes else 0)
    assert set(statuses.values()) == {0}, err[:2000]


def test_a_record_that_is_no_file_is_named_and_set_aside(folder, capfd):
    os.mkfifo(folder / "r" / "records" / "fifo.json")
    (folder / "r" / "records" / "endless.json").symlink_to("/dev/zero")
    (folder / "r" / "records" / "folder.json").mkdir()
    assert command("table", folder) == 0
    err = capfd.readouterr().err
    for name in ("fifo.json", "endless.json", "folder.json"):
        assert f"{name}: not a regular file" in err


def test_the_file_name_of_a_record_cannot_steer_the_terminal(folder, capfd):
    (folder / "r" / "records" / "a\x1b[31m\u202e.json").write_text("{}")
    assert command("table", folder) == 0
    out, err = capfd.readouterr()
    assert not set(out + err) & set("\x1b\u202e")
    assert "x1b" in err


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_compiles_hostile_tables_and_reads_no_other_file(folder):
    assert command("export", folder) == 0
    tables = folder / "out" / "tables"
    outcome = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-recorder", "tables.tex"],
        cwd=tables,
        capture_output=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-2000:]
    assert "/etc/passwd" not in (tables / "tables.fls").read_text()
    assert not (tables / "pwned").exists()


def test_a_leaderboard_of_hostile_titles_and_hardware_is_escaped(folder):
    store = Store(folder / "r")
    grid = store.grid()
    [board] = leaderboards(grid, store.runs().values())
    for text in [*board.frame.columns, *board.frame.to_numpy().ravel()]:
        assert "<svg" not in text
        assert not set(text) & set(HIDDEN.replace("[31m", ""))
