"""`check` with baselines that were edited and given a new hash: refused or failed, never passed."""

import json

import pytest

from hgmvae_bench.analysis.regression.baseline import run_measures
from hgmvae_bench.cli import main
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.registry import DATASETS
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.seeding import digest

ESCAPES = "\x1b[31m\u202e"


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_text):
    """Folder with records of four seeds, and a baseline of two of them."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "tiny.yaml").write_text(tiny_text)
    grid, store = parse_grid(tiny_text, "tiny.yaml"), Store(folder / "r")
    data = DATASETS["digits"].load(folder, image_size=32).digest
    for number, cell in enumerate(grid.cells):
        for seed in range(4):
            value = number + seed / 100
            metrics = {
                name: MetricValue(value=value, fingerprint={"split": "test"})
                for name in ("sc", "accuracy")
            }
            history = {term: [9.0, 5 + value] for term in ("loss", "recon_loss")}
            run = Run(cell, seed, data)
            store.add(Record.of(run, status="complete", metrics=metrics, history=history))
    assert check(folder, "b.json", "--update") == 0
    return folder


def check(folder, baseline, *options):
    """Exit status of the command."""
    arguments = ["check", "--grid", folder / "tiny.yaml", "--baseline", folder / baseline]
    arguments += ["--results", folder / "r", "--device", "cpu", "--workers", "1", *options]
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    return caught.value.code


def cell(**changes):
    """Change the first cell of a baseline."""
    return lambda content: content["cells"][0].update(changes)


def measures(**changes):
    """Change measures of the first cell; None removes one."""

    def change(content):
        of_cell = content["cells"][0]["measures"]
        of_cell.update({name.replace("_", " ", 1): values for name, values in changes.items()})
        for name in [name for name, values in of_cell.items() if values is None]:
            del of_cell[name]

    return change


def every_cell(change):
    """Apply a change to all cells."""

    def changes(content):
        for each in content["cells"]:
            change(each)

    return changes


def without_metric(of_cell):
    del of_cell["measures"]["sc"], of_cell["fingerprints"]["sc"]


def nested(depth):
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def settings(**changes):
    return lambda content: content["cells"][0]["settings"].update(changes)


POISONS = {
    "shifted values": measures(sc=[100.0, 100.001]),
    "largest floats": measures(sc=[1.7e308, 1.6e308]),
    "opposite largest floats": measures(sc=[1.7e308, -1.7e308]),
    "values whose variance overflows": measures(sc=[1e200, -1e200]),
    "values whose squared variance overflows": measures(sc=[1e90, -1e90]),
    "an integer beyond floats": measures(sc=[10**400, 1]),
    "values as text": measures(sc=["0.0", "0.01"]),
    "values as truth values": measures(sc=[True, False]),
    "values as a mapping": cell(measures={"sc": {"0": 0.0}}),
    "null values": measures(sc=[None, None]),
    "no measures": cell(measures={}, fingerprints={}),
    "another grid": lambda content: content.update(grid="other"),
    "a grid's name that is a path": lambda content: content.update(grid="../../etc/passwd"),
    "a grid's name with escapes": lambda content: content.update(grid=f"tiny{ESCAPES}"),
    "other data": every_cell(lambda each: each.update(data_digest="0" * 64)),
    "other settings": settings(latent_dim=3),
    "settings that are no settings": cell(settings={}),
    "nested settings": settings(training=nested(150)),
    "another identity": cell(identity="0" * 16),
    "an identity that is a path": cell(identity="../../../etc/passwd"),
    "a cell's name with escapes": cell(name=f"a{ESCAPES}", data_digest="0"),
    "a measure's name with escapes": measures(**{f"final_{ESCAPES}": [1.0, 2.0]}),
    "a measure with a long name": measures(**{"final_" + "x" * 10**6: [1.0, 2.0]}),
    "a seed less in one cell": lambda content: content["cells"][0].update(
        seeds=[0], measures={name: v[:1] for name, v in content["cells"][0]["measures"].items()}
    ),
    "other seeds in one cell": cell(seeds=[7, 8]),
    "a negative seed": every_cell(lambda each: each.update(seeds=[-1, 0])),
    "a seed twice": cell(seeds=[0, 0]),
    "seeds as text": every_cell(lambda each: each.update(seeds=["0", "1"])),
    "a cell less": lambda content: content.update(cells=content["cells"][:1]),
    "a cell twice": lambda content: content["cells"].append(content["cells"][0]),
    "no cells": lambda content: content.update(cells=[]),
    "a metric less": every_cell(without_metric),
    "a metric less in one cell": lambda content: without_metric(content["cells"][0]),
    "a metric without its fingerprint": lambda content: content["cells"][0]["fingerprints"].pop(
        "sc"
    ),
    "another fingerprint": cell(fingerprints={"sc": {}, "accuracy": {}}),
    "a long fingerprint": cell(
        fingerprints={"sc": {"split": "x" * 10**6}, "accuracy": {"split": "test"}}
    ),
    "a loss term less": every_cell(lambda each: each["measures"].pop("final loss")),
    "a loss term more": measures(final_other=[1.0, 2.0]),
    "a newer schema": lambda content: content.update(schema_version=2),
    "an unknown field": lambda content: content.update(hook="import os"),
    "a date of another kind": lambda content: content.update(made_at=nested(3)),
    "a provenance of another kind": lambda content: content.update(provenance="torch"),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_baseline_that_was_edited_with_a_new_hash_does_not_pass(results, poison, capfd):
    content = json.loads((results / "b.json").read_text())["content"]
    POISONS[poison](content)
    (results / "poisoned.json").write_text(
        json.dumps({"sha256": digest(content), "content": content})
    )
    status = check(results, "poisoned.json")
    out, err = capfd.readouterr()
    assert status in (1, 2)
    assert ("failed: " in out) if status == 1 else (err.count("error: ") == 1)
    assert "passed" not in out
    assert "Traceback" not in err
    assert not set(out + err) & set(ESCAPES.replace("[31m", ""))
    assert len(out + err) < 10_000


FILES = {
    "empty": b"",
    "no JSON": b"\x00\xff",
    "NaN": b'{"sha256": "0", "content": {"a": NaN}}',
    "infinite": b'{"sha256": "0", "content": {"a": 1e999}}',
    "no mapping": b"[1]",
    "a null content": b'{"sha256": "0", "content": null}',
    "nested without end": b"[" * 10**6,
    "nested": b'{"sha256": "0", "content": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a lone surrogate": b'{"sha256": "0", "content": "\\ud800"}',
    "many digits": b'{"sha256": "0", "content": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_baseline_is_refused(results, name, capfd):
    (results / "poisoned.json").write_bytes(FILES[name])
    assert check(results, "poisoned.json") == 2
    out, err = capfd.readouterr()
    assert err.count("error: ") == 1
    assert "poisoned.json" in err
    assert "--update" in err
    assert "Traceback" not in out + err


def test_a_baseline_without_an_end_is_refused_without_reading_it(results, capfd):
    (results / "endless.json").symlink_to("/dev/zero")
    assert check(results, "endless.json") == 2
    assert "too large" in capfd.readouterr().err


def test_the_unchanged_baseline_passes(results, capfd):
    assert check(results, "b.json") == 0
    assert "passed: " in capfd.readouterr().out


@pytest.mark.parametrize("last", [[], [1e300]])
def test_a_loss_without_a_usable_last_epoch_fails_the_check(tiny_grid, last):
    run = Run(next(iter(tiny_grid.cells)), 0, "d")
    record = Record.of(run, status="complete", history={"loss": last})
    measured = run_measures(run, [], {run.key: StoredRun(record, "sha256", {})})
    assert measured.values == {}
    assert "final loss is missing" in measured.missing[0]
