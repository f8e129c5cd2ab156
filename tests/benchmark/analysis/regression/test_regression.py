"""The regression check: what it finds and what it ignores, and baseline files."""

import functools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgmvae_bench.analysis.regression import check as check_module
from hgmvae_bench.analysis.regression.baseline import (
    BaselineError,
    load_baseline,
    make_baseline,
    require_same_setup,
    save_baseline,
)
from hgmvae_bench.analysis.regression.check import (
    MeasureComparison,
    compare_with_baseline,
    format_check,
)
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.atomic_files import OutputError
from hgmvae_bench.utils.seeding import digest

CELLS = """
name: cells
title: Cells to fill with numbers
seeds: 2
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, beta-vae, wae-imq]
    latent_dims: [2, 4, 8]
    metrics: [sc, db]
    rows: [metric, model]
    columns: [latent_dim]
"""
TERMS = ["loss", "recon_loss"]


@pytest.fixture(scope="module")
def cells():
    return parse_grid(CELLS, "cells.yaml")


def runs_with(grid, seeds, digest_of_data="d"):
    return [Run(cell, seed, digest_of_data) for cell in grid.cells for seed in seeds]


def filled(runs, values, **changes):
    """Records of runs with values (run, measure) for sc, db and two loss terms."""
    stored = {}
    for run, (sc, db, *losses) in zip(runs, values, strict=True):
        content = {
            "metrics": {
                "sc": MetricValue.of(sc, {"labels": "classes"}, 0.1),
                "db": MetricValue.of(db, {"labels": "classes"}, 0.1),
            },
            "history": {term: [9.0, loss] for term, loss in zip(TERMS, losses, strict=True)},
            **changes,
        }
        record = empty_record(run).model_copy(update=content)
        stored[run.key] = StoredRun(record, "sha256", dict(record.metrics))
    return stored


@functools.cache
def empty_record(run):
    """A validated record, which copies share: thousands of draws need no validation each."""
    return Record.of(run, status="complete", provenance={"packages": {"torch": "1"}})


@pytest.fixture
def ten(cells):
    """Runs of ten seeds and a baseline of them: every measure is N(5, 1)."""
    runs = runs_with(cells, range(10))
    stored = filled(runs, np.random.default_rng(0).normal(5, 1, (len(runs), 4)))
    return runs, stored, make_baseline(cells, runs, stored)


def test_cells_and_their_means_are_compared(cells, ten):
    _, _, baseline = ten
    runs = runs_with(cells, [10, 11])
    stored = filled(runs, np.random.default_rng(1).normal(5, 1, (len(runs), 4)))
    check = compare_with_baseline(baseline, cells, runs, stored)
    assert check.passed
    by_cell = {}
    for comparison in check.comparisons:
        by_cell.setdefault(comparison.cell, []).append(comparison)
    assert len(by_cell) == 9 + 3 + 1
    assert all(len(measures) == 4 for measures in by_cell.values())
    vae = next(c for c in by_cell["all vae (mean of 3)"] if c.measure == "sc")
    members = [
        c for c in check.comparisons if c.cell.startswith("digits_vae_L") and c.measure == "sc"
    ]
    assert vae.identities == tuple(c.identities[0] for c in members)
    assert vae.new == pytest.approx(np.mean([c.new for c in members], axis=0))
    assert vae.old == pytest.approx(np.mean([c.old for c in members], axis=0))


def test_a_shift_names_cell_metric_old_new_and_threshold(cells, ten):
    _, _, baseline = ten
    runs = runs_with(cells, [10, 11])
    values = np.random.default_rng(1).normal(5, 1, (len(runs), 4))
    values[2:4, 1] = 15.25, 14.75
    check = compare_with_baseline(baseline, cells, runs, filled(runs, values))
    shift = next(c for c in check.shifts if c.cell == "digits_vae_L4")
    assert shift.measure == "db"
    assert shift.deviation == pytest.approx(14.75 - np.mean(shift.old))
    text = format_check(check)
    assert f"shifted: digits_vae_L4: db: old {np.mean(shift.old):.4g} ± " in text
    assert "(n = 10), new 15 (15.25, 14.75), worse; allowed " in text
    assert f"(threshold {shift.threshold:.2g})" in text
    assert text.splitlines()[-1].startswith("failed: 52 comparisons: ")


def test_one_deviating_seed_is_no_shift(cells, ten):
    _, _, baseline = ten
    runs = runs_with(cells, [10, 11])
    values = np.full((len(runs), 4), 5.0)
    values[2] = 1000.0
    check = compare_with_baseline(baseline, cells, runs, filled(runs, values))
    assert [c for c in check.shifts if c.cell.startswith("digits")] == []


@settings(max_examples=50)
@given(st.sets(st.integers(0, 9), min_size=1), st.integers(0, 1000))
def test_the_seeds_of_the_baseline_are_never_a_shift(seeds, draw):
    grid = parse_grid(CELLS, "cells.yaml").select(models=["vae"], latent_dims=[2])
    runs = runs_with(grid, range(10))
    rng = np.random.default_rng(draw)
    # Clumped values: a subset can lie as far off the mean as possible.
    values = rng.choice([0.0, 1.0, 1.0 + 1e-9], size=(10, 4), p=[0.7, 0.2, 0.1])
    stored = filled(runs, values)
    baseline = make_baseline(grid, runs, stored)
    again = [run for run in runs if run.seed in seeds]
    assert compare_with_baseline(baseline, grid, again, stored).passed


def test_values_without_spread_may_move_by_two_percent(cells):
    grid = cells.select(models=["vae"], latent_dims=[2])
    runs = runs_with(grid, range(4))
    baseline = make_baseline(grid, runs, filled(runs, np.full((4, 4), 8.0)))
    for value, shifted in ((8.0, []), (8.15, []), (8.17, ["db"])):
        values = np.full((2, 4), 8.0)
        values[:, 1] = value
        check = compare_with_baseline(baseline, grid, runs[:2], filled(runs[:2], values))
        assert [shift.measure for shift in check.shifts] == shifted


@pytest.mark.parametrize(("noise", "seed"), [("normal", 0), ("exponential", 2), ("two modes", 3)])
def test_false_alarms_are_as_rare_as_stated(cells, monkeypatch, noise, seed):
    """The level is 0.2 instead of 0.01, so that a hundred checks suffice."""
    monkeypatch.setattr(check_module, "FALSE_ALARM_RATE", 0.2)
    rng = np.random.default_rng(seed)

    def draw(n):
        if noise == "two modes":  # one seed in seven ends in a bad optimum
            return rng.normal(20 + 10 * (rng.random((n, 1)) < 1 / 7), 1, (n, 4))
        return 20 + getattr(rng, noise)(size=(n, 4))

    old, new = runs_with(cells, range(10)), runs_with(cells, range(10, 14))
    first = [run for run in new if run.seed < 12]
    suspicions = alarms = checks = 0
    for _ in range(20):
        baseline = make_baseline(cells, old, filled(old, draw(len(old))))
        for _ in range(5):
            stored = filled(new, draw(len(new)))
            check = compare_with_baseline(baseline, cells, first, stored)
            suspicions += bool(check.shifts)
            if check.shifts:
                again = [run for run in new if run.cell.identity in check.suspect_identities]
                check = check.confirmed_by(compare_with_baseline(baseline, cells, again, stored))
            alarms += bool(check.shifts)
            checks += 1
    assert alarms / checks < 0.1
    if noise == "normal":
        assert 0.03 < suspicions / checks < 0.2


@pytest.mark.parametrize(("shift", "least"), [(4.0, 0.4), (5.0, 0.8), (6.0, 0.95)])
def test_the_power_is_as_stated(cells, shift, least):
    """A shift of one cell of nine, in standard deviations."""
    rng = np.random.default_rng(3)
    old, new = runs_with(cells, range(10)), runs_with(cells, [10, 11])
    found = []
    for _ in range(8):
        baseline = make_baseline(cells, old, filled(old, rng.normal(0, 1, (len(old), 4))))
        for _ in range(12):
            values = rng.normal(0, 1, (len(new), 4))
            values[:2, 0] += shift
            check = compare_with_baseline(baseline, cells, new, filled(new, values))
            found.append(any(s.cell == "digits_vae_L2" and s.measure == "sc" for s in check.shifts))
    assert np.mean(found) > least


def test_a_small_shift_of_every_cell_is_found_in_their_mean(cells, ten):
    _, _, baseline = ten
    runs = runs_with(cells, [10, 11])
    values = np.random.default_rng(4).normal(5, 1, (len(runs), 4))
    values[:, 0] -= 2
    check = compare_with_baseline(baseline, cells, runs, filled(runs, values))
    assert ("all cells (mean of 9)", "sc") in {(s.cell, s.measure) for s in check.shifts}


def test_a_term_of_one_model_is_compared_over_its_cells_once(cells):
    """A second check trains the suspected model alone, and has to find every comparison again."""

    def with_swap_loss(runs, values):
        stored = filled(runs, values)
        for run in runs:
            if run.cell.model == "vae":
                old = stored[run.key]
                term = {**old.record.history, "swap_loss": [float(values[0, 0])] * 2}
                record = old.record.model_copy(update={"history": term})
                stored[run.key] = StoredRun(record, old.sha256, old.metrics)
        return stored

    rng, old = np.random.default_rng(0), runs_with(cells, range(10))
    stored = {}
    for seed in range(10):
        of_seed = [run for run in old if run.seed == seed]
        stored |= with_swap_loss(of_seed, rng.normal(5, 1, (len(of_seed), 4)))
    baseline = make_baseline(cells, old, stored)
    new = runs_with(cells, [10, 11])
    found = compare_with_baseline(
        baseline, cells, new, with_swap_loss(new, np.full((len(new), 4), 15.0))
    )
    means = [c for c in found.comparisons if c.measure == "final swap_loss" and "mean of" in c.cell]
    assert [c.cell for c in means] == ["all vae (mean of 3)"]
    assert means[0].shifted
    alone = cells.select(models=["vae"])
    again = runs_with(alone, [10, 11, 12, 13])
    values = with_swap_loss(again, np.full((len(again), 4), 5.0))
    second = compare_with_baseline(baseline, alone, again, values)
    confirmed = found.confirmed_by(second)
    assert not any(shift.measure == "final swap_loss" for shift in confirmed.shifts)


def test_missing_runs_and_values_fail_the_check(cells, ten):
    _, _, baseline = ten
    grid = cells.select(models=["vae"], latent_dims=[2])
    runs = runs_with(grid, [10, 11, 12, 13])
    stored = {
        **filled(runs[:1], [[5.0] * 4]),
        **filled(runs[1:2], [[5.0] * 4], status="diverged", error="x\nepoch 3: loss is nan"),
        **filled(runs[3:], [[np.nan] + [5.0] * 3], history={"loss": [5.0]}),
    }
    check = compare_with_baseline(baseline, grid, runs, stored)
    assert check.shifts == []
    assert check.missing == [
        "digits_vae_L2, seed 11: diverged: epoch 3: loss is nan",
        "digits_vae_L2, seed 12: not run",
        "digits_vae_L2, seed 13: sc is missing: the value is nan",
        "digits_vae_L2, seed 13: final recon_loss is no longer recorded",
    ]
    assert not check.passed
    assert format_check(check).endswith("0 shifted, 4 missing")
    assert not compare_with_baseline(baseline, grid, runs[2:3], {}).passed


def test_a_saved_baseline_is_loaded_exactly(ten, tmp_path):
    _, _, baseline = ten
    path = tmp_path / "new" / "b.json"
    save_baseline(baseline, path)
    assert load_baseline(path) == baseline
    assert list(path.parent.iterdir()) == [path]
    assert baseline.provenance == [{"packages": {"torch": "1"}}]
    assert baseline.cells[0].seeds == list(range(10))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged, or not a baseline"),
        (lambda text: "[]", "damaged, or not a baseline"),
        (lambda text: text.replace('"labels": "classes"', '"labels": "k-means"', 1), "edited"),
        (lambda text: with_new_hash(text, schema_version=2), "schema_version: Input should be 1"),
        (lambda text: with_new_hash(text, cells=[]), "cells: List should have at least 1 item"),
        (lambda text: with_changed_cell(text, seeds=[0, 1]), "cells.0: .*10 values, not 2"),
        (lambda text: with_changed_cell(text, seeds=[0] * 10), "cells.0: .*seed occurs twice"),
        (lambda text: with_changed_cell(text, measures={}), "cells.0: .*without values: db, sc"),
        (lambda text: text.replace('"sc": [', '"sc": [NaN,', 1), "damaged"),
    ],
)
def test_a_damaged_or_edited_baseline_is_refused(ten, tmp_path, harm, message):
    path = tmp_path / "b.json"
    save_baseline(ten[2], path)
    path.write_text(harm(path.read_text()))
    with pytest.raises(BaselineError, match=rf"{re.escape(str(path))}: .*{message}.*--update"):
        load_baseline(path)


def with_new_hash(text, **changes):
    content = {**json.loads(text)["content"], **changes}
    return json.dumps({"sha256": digest(content), "content": content})


def with_changed_cell(text, **changes):
    first, *others = json.loads(text)["content"]["cells"]
    return with_new_hash(text, cells=[{**first, **changes}, *others])


def test_errors_of_reading_and_writing_name_the_file(ten, tmp_path):
    with pytest.raises(BaselineError, match=r"none\.json: cannot be read: No such file.* --update"):
        load_baseline(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"b\.json: cannot be written"):
        save_baseline(ten[2], tmp_path / "file" / "b.json")


def changed(text, old, new):
    assert old in text
    return parse_grid(text.replace(old, new), "cells.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: cells", "name: other", "baseline.*cells.*other"),
        ("seeds: 2", "training: { epochs: 3 }", "digits_vae_L2: training.epochs was 10, is 3"),
        ("[2, 4, 8]", "[2, 4, 8, 16]", "digits_vae_L16: not in the baseline"),
        ("[2, 4, 8]", "[2, 4]", "digits_vae_L8: no longer in the grid"),
        ("[sc, db]", "[sc, ch]", "(?s)digits_vae_L2: ch is new.*db is no longer"),
        (
            "seeds: 2",
            "models: { beta-vae: { settings: { beta: 3.0 } } }",
            r"digits_beta-vae_L2: model.settings.beta was 2.0, is 3.0",
        ),
    ],
)
def test_a_changed_grid_is_refused(ten, old, new, message):
    grid = changed(CELLS, old, new)
    with pytest.raises(BaselineError, match=message):
        require_same_setup(ten[2], grid, runs_with(grid, [0]))


def test_other_data_and_protocols_are_refused_but_a_part_is_not(cells, ten, monkeypatch):
    _, _, baseline = ten
    require_same_setup(baseline, cells, runs_with(cells, [0]))
    part = cells.select(models=["vae"])
    require_same_setup(baseline, part, runs_with(part, [0]))
    with pytest.raises(BaselineError, match="digits_vae_L2: the content of digits"):
        require_same_setup(baseline, cells, runs_with(cells, [0], "other"))
    monkeypatch.setattr("hgmvae_bench.grid.cells.PROTOCOL_VERSION", 99)
    newer = parse_grid(CELLS, "cells.yaml")
    with pytest.raises(BaselineError, match=r"digits_vae_L2: protocol was [0-9]+, is 99"):
        require_same_setup(baseline, newer, runs_with(newer, [0]))


def test_runs_in_another_precision_are_compared_on_request(cells, ten):
    _, _, baseline = ten
    grid = cells.select(precision="bf16")
    runs = runs_with(grid, range(2))
    with pytest.raises(BaselineError, match=r"training[.]precision was float32, is bf16"):
        require_same_setup(baseline, grid, runs)
    in_bf16 = baseline.in_precision("bf16")
    require_same_setup(in_bf16, grid, runs)
    assert in_bf16.in_precision("float32") == baseline
    stored = filled(runs, [[5.0, 5.0, 5.0, 500.0]] * len(runs))
    shifts = compare_with_baseline(in_bf16, grid, runs, stored).shifts
    assert {shift.measure for shift in shifts} == {"final recon_loss"}
    assert len(shifts) == 9 + 3 + 1


def test_values_with_other_fingerprints_are_refused(cells, ten):
    _, _, baseline = ten
    runs = runs_with(cells, [10])
    stored = filled(runs, [[5.0] * 4] * len(runs))
    stored[runs[0].key].metrics["sc"] = MetricValue.of(5.0, {"labels": "k-means"}, 0.1)
    message = r"digits_vae_L2: values of sc .*'classes'.* and with .*'k-means'"
    with pytest.raises(BaselineError, match=message):
        compare_with_baseline(baseline, cells, runs, stored)


def test_a_baseline_needs_every_value_and_several_seeds(cells):
    grid = cells.select(models=["vae"], latent_dims=[2])
    runs = runs_with(grid, range(3))
    good = filled(runs, [[5.0] * 4] * 3)
    with pytest.raises(BaselineError, match="at least 2 seeds"):
        make_baseline(grid, runs[:1], good)
    with pytest.raises(BaselineError, match="L2, seed 1: failed: no reason"):
        make_baseline(grid, runs, {**good, **filled(runs[1:2], [[5.0] * 4], status="failed")})
    with pytest.raises(BaselineError, match="seed 2: sc is missing: the value is inf"):
        make_baseline(grid, runs, {**good, **filled(runs[2:], [[np.inf, 1.0, 1.0, 1.0]])})


def test_variants_of_one_model_have_different_names():
    models = "models: { strong: { model: beta-vae, settings: { beta: 9.0 } } }\n"
    grid = parse_grid(
        CELLS.replace("tables:", models + "tables:").replace("wae-imq", "strong"), "cells.yaml"
    )
    runs = runs_with(grid, range(2))
    baseline = make_baseline(grid, runs, filled(runs, np.eye(len(runs), 4)))
    names = [cell.name for cell in baseline.cells]
    assert len(set(names)) == 9
    assert sum(name.startswith("digits_beta-vae_L2 (") for name in names) == 2


def test_a_passed_check_shows_the_nearest_comparison():
    check = check_module.CheckResult(
        [
            MeasureComparison("a", "sc", [1.0, 3.0], [4.0, 5.0], 8.0, ("x",)),
            MeasureComparison("b", "db", [1.0, 3.0], [-4.0, -5.0], 8.0, ("x",)),
            MeasureComparison("c", "final loss", [1.0, 3.0], [1.0, 5.0], 8.0, ("x",)),
        ],
        [],
    )
    assert [c.deviation for c in check.comparisons] == [2.0, 6.0, 0.0]
    text = format_check(check)
    assert text.startswith("passed: 3 comparisons, no shift beyond noise; the nearest, at 75% of")
    assert "b: db: old 2 ± 1.4 (n = 2), new -4.5 (-4, -5), better; allowed -6 to 10" in text


@pytest.mark.parametrize(("n_old", "spread", "warned"), [(2, 0.7, True), (10, 0.3, False)])
def test_a_passed_check_with_wide_thresholds_warns(cells, n_old, spread, warned):
    runs = runs_with(cells, range(n_old + 1))
    stored = filled(runs, np.random.default_rng(0).normal(5, spread, (len(runs), 4)))
    old = [run for run in runs if run.seed < n_old]
    check = compare_with_baseline(
        make_baseline(cells, old, stored), cells, runs[n_old :: n_old + 1], stored
    )
    assert check.passed
    wide = sum(c.threshold > abs(np.mean(c.old)) / 2 for c in check.comparisons)
    warning = f"\nwarning: {wide} thresholds are wider than 50% of the old mean"
    assert (warning in format_check(check)) is warned
