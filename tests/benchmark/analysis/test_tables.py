import itertools
import re
from dataclasses import replace

import pytest
from scipy.stats import ttest_ind

from hgmvae_bench.analysis.render import WRITERS, to_text
from hgmvae_bench.analysis.report.findings import best_models
from hgmvae_bench.analysis.tables import build_table, metric_titles, with_all_metrics
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.local_files import LocalPlugin, using_plugins
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.schema import MAX_SHORT_ERROR, ControlRecord, MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun
from hgmvae_bench.utils.text import distinct_titles


def entries(table):
    return {(e.metric, e.model): e for e in table.entries}


def test_mean_spread_and_rank(tiny_grid, tiny_runs):
    table = entries(build_table(tiny_grid, tiny_grid.table("1"), tiny_runs))
    vae, wae = table["sc", "vae"], table["sc", "wae-imq"]
    assert vae.mean == pytest.approx(0.2)
    # By hand: sqrt((0.1² + 0.1²) / (2 - 1)).
    assert vae.std == pytest.approx(0.02**0.5)
    assert (vae.n, vae.planned, vae.rank, vae.note) == (2, 2, 2, "")
    assert (wae.mean, wae.std, wae.rank) == (0.5, 0.0, 1)


def test_lower_is_better_where_the_metric_says_so(tiny_text):
    grid = parse_grid(tiny_text.replace("[sc, accuracy]", "[db, sc]"), "g.yaml")
    value = {metric: MetricValue(value=1) for metric in ("db", "sc")}
    worse = {metric: MetricValue(value=2) for metric in ("db", "sc")}
    runs = []
    for model, metrics in (("vae", value), ("wae-imq", worse)):
        run = Run(grid.cell("digits", model, 2), 0, "d")
        runs.append(StoredRun(Record.of(run, status="complete"), model, metrics))
    table = entries(build_table(grid, grid.table("1"), runs))
    assert table["db", "vae"].rank == table["sc", "wae-imq"].rank == 1


def test_models_are_not_ranked_by_a_neutral_metric(tiny_text):
    grid = parse_grid(tiny_text.replace("[sc, accuracy]", "[rate, elbo]"), "g.yaml")
    runs = []
    for model, value in (("vae", 1.0), ("wae-imq", 2.0)):
        metrics = dict.fromkeys(("rate", "elbo"), MetricValue(value=value))
        record = Record.of(Run(grid.cell("digits", model, 2), 0, "d"), status="complete")
        runs.append(StoredRun(record, model, metrics))
    built = build_table(grid, grid.table("1"), runs)
    table = entries(built)
    assert [table["elbo", model].rank for model in ("vae", "wae-imq")] == [2, 1]
    assert [table["rate", model].rank for model in ("vae", "wae-imq")] == [None, None]
    assert metric_titles(["rate", "elbo"], " ") == {"rate": "Rate", "elbo": "ELBO ↑"}


def test_equal_means_share_a_rank(tiny_grid, digits_run):
    runs = [digits_run(tiny_grid, m, s, 0.5) for m in ("vae", "wae-imq") for s in (0, 1)]
    assert {e.rank for e in build_table(tiny_grid, tiny_grid.table("1"), runs).entries} == {1}


def test_noisy_seeds_make_a_tie_and_steady_seeds_a_rank(tiny_grid, digits_run):
    def built(spread):
        runs = []
        for seed, noise in enumerate((-1, 1, -0.5, 0.5)):
            runs.append(digits_run(tiny_grid, "vae", seed, 0.4 + spread * noise))
            runs.append(digits_run(tiny_grid, "wae-imq", seed, 0.5 - spread * noise))
        return entries(build_table(tiny_grid, tiny_grid.table("1"), runs))

    clear, noisy = built(0.001), built(0.3)
    assert [clear["sc", m].tied for m in ("vae", "wae-imq")] == [False, False]
    assert [noisy["sc", m].tied for m in ("vae", "wae-imq")] == [True, True]
    assert [noisy["sc", m].rank for m in ("vae", "wae-imq")] == [2, 1]
    values = [list(noisy["sc", m].by_seed.values()) for m in ("wae-imq", "vae")]
    expected = ttest_ind(*values, equal_var=False).pvalue
    assert noisy["sc", "vae"].p_value == pytest.approx(expected)
    assert noisy["sc", "wae-imq"].p_value is None


def test_p_values_are_corrected_for_all_pairs_of_models(tiny_text, digits_run):
    """Holm over all pairs: which is the best, and so what is tested, is known from the data alone.

    Six pairs of four models, in the order of their p-values, two of which do not concern the best.
    """
    text = tiny_text.replace("[vae, wae-imq]", "[vae, wae-imq, wae-rbf, swae]")
    grid = parse_grid(text, "g.yaml")
    noise = {
        "wae-imq": (0.100, 0.101, 0.102),
        "vae": (0.01, 0.03, 0.02),
        "wae-rbf": (0.04, 0.02, 0.04),
        "swae": (0.1, 0, 0),
    }
    values = {model: [0.4 + x for x in each] for model, each in noise.items()}
    runs = [
        digits_run(grid, model, seed, value)
        for model, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    table = entries(build_table(grid, grid.table("1"), runs))
    pairs = [(a, b) for a, b in itertools.combinations(values, 2)]
    alone = {p: ttest_ind(*(values[m] for m in p), equal_var=False).pvalue for p in pairs}
    assert sorted(pairs, key=alone.get)[:2] == [("wae-imq", "vae"), ("wae-imq", "wae-rbf")]
    assert table["sc", "vae"].p_value == pytest.approx(6 * alone["wae-imq", "vae"])
    assert table["sc", "wae-rbf"].p_value == pytest.approx(5 * alone["wae-imq", "wae-rbf"])
    assert [table["sc", m].tied for m in ("vae", "wae-rbf", "swae")] == [False, False, True]
    assert table["sc", "wae-imq"].tied


def test_a_single_seed_is_tied_with_the_best(tiny_grid, digits_run):
    runs = [digits_run(tiny_grid, "vae", 0, 0.1), digits_run(tiny_grid, "wae-imq", 0, 0.9)]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    assert {(e.tied, e.low, e.p_value) for e in table.entries} == {(True, None, None)}


def test_the_interval_is_around_the_mean(tiny_grid, tiny_runs):
    vae = entries(build_table(tiny_grid, tiny_grid.table("1"), tiny_runs))["sc", "vae"]
    # Student's t of one degree of freedom: 12.706 · 0.1 either way.
    assert (vae.low, vae.high) == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)


def test_a_footnote_counts_seeds_beyond_the_plan(tiny_grid, digits_run):
    runs = [digits_run(tiny_grid, "vae", seed, 0.1 + seed / 100) for seed in range(5)]
    runs += [digits_run(tiny_grid, "wae-imq", seed, 0.2) for seed in range(2)]
    runs.append(digits_run(tiny_grid, "vae", 5, status="diverged", error="epoch 2"))
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    assert "(n = 2 unless noted)" in table.formatted.legend
    assert entries(table)["sc", "vae"].footnote.startswith("n = 5 of 6: 1 × diverged (digits_vae")
    assert entries(table)["sc", "wae-imq"].footnote == ""
    table = build_table(tiny_grid, tiny_grid.table("1"), runs[:-1])
    assert entries(table)["sc", "vae"].footnote == "n = 5"


def test_a_footnote_names_every_unsuccessful_run_its_reason_and_its_log(tiny_grid, digits_run):
    complete, diverged, failed = [
        digits_run(tiny_grid, "vae", 0, 0.1),
        digits_run(tiny_grid, "vae", 1, status="diverged", error="trace\nepoch 2: loss is nan\n"),
        digits_run(tiny_grid, "wae-imq", 0, status="failed", error="boom"),
    ]
    diverged = replace(diverged, log="logs/diverged.log")
    table = build_table(tiny_grid, tiny_grid.table("1"), [complete, diverged, failed])
    vae, wae = entries(table)["sc", "vae"], entries(table)["sc", "wae-imq"]
    reason = f"{diverged.record.key}: epoch 2: loss is nan, logs/diverged.log"
    assert (vae.n, vae.planned) == (1, 2)
    assert vae.note == f"1 × diverged ({reason})"
    assert (wae.n, wae.mean, wae.rank) == (0, None, None)
    assert wae.note == f"1 × failed ({failed.record.key}: boom); 1 × not run"
    text = to_text(table.formatted)
    assert "0.100¹ [a]" in text
    assert "– [b]" in text
    assert "[a] n = 1 of 2: 1 × diverged" in text
    assert "[b] n = 0 of 2: 1 × failed" in text


def test_a_footnote_names_three_unsuccessful_runs_and_counts_the_others(tiny_grid, digits_run):
    runs = [
        digits_run(tiny_grid, "vae", seed, status="failed", error="x" * 500) for seed in range(5)
    ]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    note = entries(table)["sc", "vae"].note
    assert note.startswith("5 × failed (")
    assert note.endswith("; and 2 more)")
    assert note.count(f"{'x' * (MAX_SHORT_ERROR - 1)}…") == 3
    assert "no reason" in digits_run(tiny_grid, "vae", 9, status="failed").record.short_error


FRAMES = 'Traceback (most recent call last):\n  File "a.py", line 1, in step\n    step()\n'


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FRAMES + "ValueError: one line", "ValueError: one line"),
        (
            FRAMES + "RuntimeError: CUDA error: out of range\nFor debugging\n  set X",
            "RuntimeError: CUDA error: out of range For debugging set X",
        ),
        (FRAMES + "KeyError: 1\n\nDuring handling …\n\n" + FRAMES + "TypeError: 2", "TypeError: 2"),
        ("a line of the log\n" + FRAMES + "ValueError: 1\nthe process died", "the process died"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        (FRAMES + "ValueError: " + "x" * 999, "ValueError: " + "x" * 107 + "…"),
    ],
)
def test_the_reason_of_a_run_is_its_exception_with_the_whole_message(
    tiny_grid, digits_run, error, reason
):
    record = digits_run(tiny_grid, "vae", 9, status="failed").record
    assert record.model_copy(update={"error": error}).short_error == reason


def test_skewed_seeds_have_their_median_beside_the_mean(tiny_text, digits_run):
    """HGMVAE-U's DB on MNIST: two of ten seeds pull the mean from 0.60 to 0.67."""
    grid = parse_grid(tiny_text.replace("seeds: 2", "seeds: 10"), "g.yaml")
    skewed = [0.60, 0.59, 0.58, 0.61, 0.60, 0.59, 0.60, 0.58, 1.15, 0.85]
    values = {"vae": skewed, "wae-imq": [0.6 + seed / 1000 for seed in range(10)]}
    runs = [
        digits_run(grid, model, seed, value)
        for model, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    table = build_table(grid, grid.table("1"), runs)
    vae, wae = entries(table)["sc", "vae"], entries(table)["sc", "wae-imq"]
    assert (vae.mean, vae.median) == pytest.approx((0.675, 0.60))
    assert "median of 0.600" in vae.footnote
    assert wae.footnote == ""
    assert table.values["median"].notna().all()


def test_a_footnote_counts_runs_with_other_settings(tiny_grid, tiny_text, digits_run):
    other = parse_grid(tiny_text.replace("width: 2", "width: 3"), "g.yaml")
    assert other.cell("digits", "vae", 2) != tiny_grid.cell("digits", "vae", 2)
    runs = [
        digits_run(other, "vae", 0, 0.1),
        digits_run(other, "vae", 1, 0.1),
        *[digits_run(tiny_grid, "wae-imq", seed, 0.5) for seed in (0, 1)],
    ]
    table = entries(build_table(tiny_grid, tiny_grid.table("1"), runs))
    assert table["sc", "vae"].note == "2 × not run (2 with other settings)"
    assert table["sc", "wae-imq"].note == ""


def test_a_footnote_gives_the_reason_of_a_missing_metric(tiny_grid, digits_run):
    run = digits_run(tiny_grid, "vae", 0, 0.1)
    run.metrics["sc"] = MetricValue(missing="no weights")
    entry = entries(build_table(tiny_grid, tiny_grid.table("1"), [run]))["sc", "vae"]
    assert entry.note == "1 × no weights; 1 × not run"


ALEXNET = "AlexNet of torchvision: alexnet.pth is not here and cannot be downloaded"


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        (f"{ALEXNET} (alexnet.pth cannot be: https://d.org/a.pth: no (0 bytes)); get it", ALEXNET),
        (f"{ALEXNET} (/home/me/alexnet.pth is being downloaded); get it from d.org", ALEXNET),
        ("error: ValueError: shape (3, 4)\nis 1/2 of it", "error: ValueError: shape (3, 4)"),
        ("the dataset has no classes", "the dataset has no classes"),
    ],
)
def test_a_reason_is_shortened_in_a_table_only(tiny_grid, reason, short, digits_run):
    run = digits_run(tiny_grid, "vae", 0, 0.1)
    run.metrics["sc"] = MetricValue(missing=reason)
    table = build_table(tiny_grid, tiny_grid.table("1"), [run])
    assert entries(table)["sc", "vae"].note == f"1 × {short}; 1 × not run"
    assert run.metrics["sc"].missing == reason
    assert max(map(len, to_text(table.formatted).splitlines())) <= 100


def test_values_with_different_fingerprints_cost_only_their_metric(
    tiny_grid, tiny_runs, digits_run
):
    expected = entries(build_table(tiny_grid, tiny_grid.table("1"), tiny_runs))
    other = digits_run(tiny_grid, "vae", 2, 0.1, fingerprint={"split": "test", "n_images": 99})
    del other.metrics["accuracy"]
    table = build_table(tiny_grid, tiny_grid.table("1"), [*tiny_runs, other])
    found = entries(table)
    for model in ("vae", "wae-imq"):
        sc, accuracy = found["sc", model], found["accuracy", model]
        assert (sc.mean, sc.rank, sc.n, sc.by_seed) == (None, None, 0, {})
        assert re.search(r"\d × not comparable: digits_.*_s0_\w+ and .*_s2_\w+ differ in", sc.note)
        assert "(360, 99)" in sc.note
        before = expected["accuracy", model]
        assert (accuracy.mean, accuracy.rank) == (before.mean, before.rank)
    text = " ".join(to_text(table.formatted).split())
    assert "differ in n_images (360, 99)" in text


def test_runs_on_different_data_cost_only_their_dataset(tiny_grid, tiny_runs, digits_run):
    tiny_runs.append(digits_run(tiny_grid, "vae", 0, 0.1, data="edited"))
    table = build_table(tiny_grid, tiny_grid.table("1"), tiny_runs)
    assert {entry.mean for entry in table.entries} == {None}
    assert all("differ in data" in entry.note for entry in table.entries)


def test_a_difference_of_fingerprints_is_quoted_briefly(tiny_grid, tiny_runs, digits_run):
    tiny_runs.append(digits_run(tiny_grid, "vae", 2, 0.1, fingerprint={"x" * 9999: "y" * 9999}))
    entry = build_table(tiny_grid, tiny_grid.table("1"), tiny_runs).entries[0]
    assert len(entry.note) < 400


def test_runs_of_other_cells_are_ignored(tiny_grid, tiny_runs, digits_run):
    other = digits_run(tiny_grid, "vae", 0, 0.9)
    other = StoredRun(other.record.model_copy(update={"cell": "other"}), "x", other.metrics)
    expected = build_table(tiny_grid, tiny_grid.table("1"), tiny_runs).entries
    assert build_table(tiny_grid, tiny_grid.table("1"), [*tiny_runs, other]).entries == expected


def test_the_error_for_an_unknown_table_lists_the_known_ones(tiny_grid):
    with pytest.raises(UnknownNameError, match=r"unknown table of grid tiny '7'; known: 1"):
        tiny_grid.table("7")


def test_all_recorded_metrics_follow_the_tables_own(tiny_grid, digits_run):
    spec = tiny_grid.table("1")
    own = [digits_run(tiny_grid, "vae", 0, 0.5, metrics=("sc", "nmi", "db", "no-longer-there"))]
    other = digits_run(tiny_grid, "vae", 1, 0.5, metrics=("ssim",))
    other = StoredRun(other.record.model_copy(update={"cell": "other"}), "x", other.metrics)
    shown = with_all_metrics(tiny_grid, spec, [*own, other])
    assert shown.metrics[:2] == ["sc", "accuracy"]
    assert set(shown.metrics[2:]) == {"nmi", "db"}
    assert with_all_metrics(tiny_grid, spec, []) == spec
    table = build_table(tiny_grid, shown, own)
    assert {entry.metric for entry in table.entries if entry.n} == {"sc", "nmi", "db"}


def test_a_table_can_show_other_metrics(tiny_grid, tiny_runs):
    table = build_table(tiny_grid, tiny_grid.table("1").with_metrics(["accuracy"]), tiny_runs)
    assert {entry.metric for entry in table.entries} == {"accuracy"}
    assert "Accuracy" in to_text(table.formatted)


def test_variants_without_a_title_have_their_names_in_tables(tiny_text):
    variants = (
        "models: { weak: { model: beta-vae }, strong: { model: beta-vae, settings: { beta: 9 } } }"
    )
    text = tiny_text.replace("tables:", f"{variants}\ntables:", 1)
    grid = parse_grid(text.replace("[vae, wae-imq]", "[vae, weak, strong]"), "tiny.yaml")
    means = build_table(grid, grid.table("1"), []).means
    assert [title.rpartition("(")[2] for title in means.columns] == ["VAE", "weak)", "strong)"]


def test_metrics_with_the_same_title_are_distinguished_by_name(tiny_text, digits_run):
    again = (
        "from hgmvae_bench.evaluation.metrics.clustering import ACCURACY\n"
        "METRICS = {'accuracy-again': ACCURACY}\n"
    )
    text = tiny_text.replace("[sc, accuracy]", "[sc, accuracy, accuracy-again]")
    metrics = ("sc", "accuracy", "accuracy-again")
    with using_plugins([LocalPlugin("again.py", again)]):
        grid = parse_grid(text, "g.yaml")
        runs = [digits_run(grid, "vae", seed, 0.5, metrics=metrics) for seed in (0, 1)]
        table = build_table(grid, grid.table("1"), runs)
        assert list(table.means.index) == [
            "SC↑",
            "Accuracy (k-means) (accuracy)↑",
            "Accuracy (k-means) (accuracy-again)↑",
        ]
        for name, (_, write) in WRITERS.items():
            assert "accuracy-again" in write(table.formatted), name
        assert set(best_models(grid, [table]).rows[-1].labels) == {table.means.index[-1]}


def test_controls_and_models_with_the_same_title_are_distinguished(tiny_text, digits_run):
    text = tiny_text.replace("seeds: 2", "seeds: 2\nmodels: { vae: { title: Noise (control) } }")
    grid = parse_grid(text, "g.yaml")
    control = ControlRecord(
        key="digits_mean-image_0",
        control="mean-image",
        title="Noise",
        dataset="digits",
        image_size=32,
        train_images=128,
        data_digest="d",
        latent_dim=None,
        comparable=True,
        metrics={"sc": MetricValue(value=0.0, fingerprint={"split": "test", "n_images": 360})},
    )
    runs = [digits_run(grid, "vae", 0, 0.5)]
    table = build_table(grid, grid.table("1"), runs, [control])
    assert list(table.means.columns) == [
        "Noise (control) (vae)",
        "WAE-IMQ",
        "Noise (control) (control:mean-image)",
    ]


def test_titles_stay_distinct_when_an_added_name_repeats_another_title():
    titles = distinct_titles({"a": "X", "b": "X", "c": "X (a)"})
    assert titles == {"a": "X (a) (a)", "b": "X (b)", "c": "X (a) (c)"}
