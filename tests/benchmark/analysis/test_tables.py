import io
import itertools
import re

import pandas as pd
import pytest
from scipy.stats import ttest_ind

from hgmvae_bench.analysis.render import to_csv, to_latex, to_markdown, to_text
from hgmvae_bench.analysis.tables import TableError, build_table
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.plugins.protocols import UnknownNameError
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.stored_run import StoredRun

FINGERPRINT = {"split": "test", "n_images": 360}


def stored(grid, model, seed, sc=None, *, status="complete", data="d", fingerprint=None, **content):
    metrics = {}
    if sc is not None:
        value = MetricValue(value=sc, fingerprint=fingerprint or FINGERPRINT)
        metrics = {"sc": value, "accuracy": value}
    run = Run(grid.cell("digits", model, 2), seed, data)
    record = Record.of(run, status=status, metrics=metrics, **content)
    return StoredRun(record, f"{model}{seed}", dict(metrics))


@pytest.fixture
def runs(tiny_grid):
    return [
        stored(tiny_grid, "vae", 0, 0.1),
        stored(tiny_grid, "vae", 1, 0.3),
        stored(tiny_grid, "wae-imq", 0, 0.5),
        stored(tiny_grid, "wae-imq", 1, 0.5),
    ]


def entries(table):
    return {(e.metric, e.model): e for e in table.entries}


def test_mean_spread_and_rank(tiny_grid, runs):
    table = entries(build_table(tiny_grid, tiny_grid.table("1"), runs))
    vae, wae = table["sc", "vae"], table["sc", "wae-imq"]
    assert vae.mean == pytest.approx(0.2)
    # By hand: sqrt((0.1² + 0.1²) / (2 - 1)).
    assert vae.std == pytest.approx(0.02**0.5)
    assert (vae.n, vae.planned, vae.rank, vae.note) == (2, 2, 2, "")
    assert (wae.mean, wae.std, wae.rank) == (0.5, 0.0, 1)


def test_lower_is_better_where_the_metric_says_so(tiny_text):
    grid = parse_grid(tiny_text.replace("[sc, accuracy]", "[db, sc]"), "g.yaml")
    value = {m: MetricValue(value=v, fingerprint=FINGERPRINT) for m, v in (("db", 1), ("sc", 1))}
    worse = {m: MetricValue(value=v, fingerprint=FINGERPRINT) for m, v in (("db", 2), ("sc", 2))}
    runs = []
    for model, metrics in (("vae", value), ("wae-imq", worse)):
        run = Run(grid.cell("digits", model, 2), 0, "d")
        runs.append(StoredRun(Record.of(run, status="complete"), model, metrics))
    table = entries(build_table(grid, grid.table("1"), runs))
    assert table["db", "vae"].rank == table["sc", "wae-imq"].rank == 1


def test_equal_means_share_a_rank(tiny_grid):
    runs = [stored(tiny_grid, m, s, 0.5) for m in ("vae", "wae-imq") for s in (0, 1)]
    assert {e.rank for e in build_table(tiny_grid, tiny_grid.table("1"), runs).entries} == {1}


def test_seeds_that_scatter_make_a_tie_and_seeds_that_do_not_make_a_rank(tiny_grid):
    def built(spread):
        runs = []
        for seed, noise in enumerate((-1, 1, -0.5, 0.5)):
            runs.append(stored(tiny_grid, "vae", seed, 0.4 + spread * noise))
            runs.append(stored(tiny_grid, "wae-imq", seed, 0.5 - spread * noise))
        return entries(build_table(tiny_grid, tiny_grid.table("1"), runs))

    clear, noisy = built(0.001), built(0.3)
    assert [clear["sc", m].tied for m in ("vae", "wae-imq")] == [False, False]
    assert [noisy["sc", m].tied for m in ("vae", "wae-imq")] == [True, True]
    assert [noisy["sc", m].rank for m in ("vae", "wae-imq")] == [2, 1]
    values = [list(noisy["sc", m].by_seed.values()) for m in ("wae-imq", "vae")]
    expected = ttest_ind(*values, equal_var=False).pvalue
    assert noisy["sc", "vae"].p_value == pytest.approx(expected)
    assert noisy["sc", "wae-imq"].p_value is None


def test_more_rivals_make_it_harder_to_tell_them_apart(tiny_text):
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
    runs = [stored(grid, m, seed, x) for m, each in values.items() for seed, x in enumerate(each)]
    table = entries(build_table(grid, grid.table("1"), runs))
    pairs = [(a, b) for a, b in itertools.combinations(values, 2)]
    alone = {p: ttest_ind(*(values[m] for m in p), equal_var=False).pvalue for p in pairs}
    assert sorted(pairs, key=alone.get)[:2] == [("wae-imq", "vae"), ("wae-imq", "wae-rbf")]
    assert table["sc", "vae"].p_value == pytest.approx(6 * alone["wae-imq", "vae"])
    assert table["sc", "wae-rbf"].p_value == pytest.approx(5 * alone["wae-imq", "wae-rbf"])
    assert [table["sc", m].tied for m in ("vae", "wae-rbf", "swae")] == [False, False, True]
    assert table["sc", "wae-imq"].tied


def test_one_seed_tells_nothing_apart(tiny_grid):
    runs = [stored(tiny_grid, "vae", 0, 0.1), stored(tiny_grid, "wae-imq", 0, 0.9)]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    assert {(e.tied, e.low, e.p_value) for e in table.entries} == {(True, None, None)}


def test_the_interval_lies_around_the_mean(tiny_grid, runs):
    vae = entries(build_table(tiny_grid, tiny_grid.table("1"), runs))["sc", "vae"]
    # Student's t of one degree of freedom: 12.706 · 0.1 either way.
    assert (vae.low, vae.high) == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)


def test_more_seeds_than_planned_are_said(tiny_grid):
    runs = [stored(tiny_grid, "vae", seed, 0.1 + seed / 100) for seed in range(5)]
    runs += [stored(tiny_grid, "wae-imq", seed, 0.2) for seed in range(2)]
    runs.append(stored(tiny_grid, "vae", 5, status="diverged", error="epoch 2"))
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    assert "(n = 2 unless noted)" in table.formatted.legend
    assert entries(table)["sc", "vae"].footnote == "n = 5 of 6: 1 × diverged"
    assert entries(table)["sc", "wae-imq"].footnote == ""
    table = build_table(tiny_grid, tiny_grid.table("1"), runs[:-1])
    assert entries(table)["sc", "vae"].footnote == "n = 5"


def test_what_is_lacking_is_said_never_averaged_away(tiny_grid):
    runs = [
        stored(tiny_grid, "vae", 0, 0.1),
        stored(tiny_grid, "vae", 1, status="diverged", error="epoch 2"),
        stored(tiny_grid, "wae-imq", 0, status="failed", error="boom"),
    ]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    vae, wae = entries(table)["sc", "vae"], entries(table)["sc", "wae-imq"]
    assert (vae.n, vae.planned, vae.note) == (1, 2, "1 × diverged")
    assert (wae.n, wae.mean, wae.rank, wae.note) == (0, None, None, "1 × failed; 1 × not run")
    text = to_text(table.formatted)
    assert "0.100¹ [a]" in text
    assert "– [b]" in text
    assert "[a] n = 1 of 2: 1 × diverged" in text
    assert "[b] n = 0 of 2: 1 × failed; 1 × not run" in text


def test_runs_of_other_settings_are_told_of_where_none_are_of_the_grids(tiny_grid, tiny_text):
    other = parse_grid(tiny_text.replace("width: 2", "width: 3"), "g.yaml")
    assert other.cell("digits", "vae", 2) != tiny_grid.cell("digits", "vae", 2)
    runs = [
        stored(other, "vae", 0, 0.1),
        stored(other, "vae", 1, 0.1),
        *[stored(tiny_grid, "wae-imq", seed, 0.5) for seed in (0, 1)],
    ]
    table = entries(build_table(tiny_grid, tiny_grid.table("1"), runs))
    assert table["sc", "vae"].note == "2 × not run (2 there are of other settings)"
    assert table["sc", "wae-imq"].note == ""


def test_a_missing_metric_gives_its_reason(tiny_grid):
    run = stored(tiny_grid, "vae", 0, 0.1)
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
def test_a_reason_is_short_in_a_table_and_whole_in_the_record(tiny_grid, reason, short):
    run = stored(tiny_grid, "vae", 0, 0.1)
    run.metrics["sc"] = MetricValue(missing=reason)
    table = build_table(tiny_grid, tiny_grid.table("1"), [run])
    assert entries(table)["sc", "vae"].note == f"1 × {short}; 1 × not run"
    assert run.metrics["sc"].missing == reason
    assert max(map(len, to_text(table.formatted).splitlines())) <= 100


def test_values_with_different_fingerprints_are_refused(tiny_grid, runs):
    runs.append(stored(tiny_grid, "vae", 2, 0.1, fingerprint={"split": "test", "n_images": 99}))
    with pytest.raises(
        TableError, match=r"(?s)sc on digits: runs of different fingerprint.*360.*99"
    ):
        build_table(tiny_grid, tiny_grid.table("1"), runs)


def test_runs_on_different_data_are_refused(tiny_grid, runs):
    runs.append(stored(tiny_grid, "vae", 0, 0.1, data="edited"))
    with pytest.raises(TableError, match=r"(?s)different data.*edited"):
        build_table(tiny_grid, tiny_grid.table("1"), runs)


def test_runs_of_other_cells_do_not_matter(tiny_grid, runs):
    other = stored(tiny_grid, "vae", 0, 0.9)
    other = StoredRun(other.record.model_copy(update={"cell": "other"}), "x", other.metrics)
    expected = build_table(tiny_grid, tiny_grid.table("1"), runs).entries
    assert build_table(tiny_grid, tiny_grid.table("1"), [*runs, other]).entries == expected


def test_csv_comes_back_at_full_precision(tiny_grid, read_csv):
    third = 1 / 3
    runs = [stored(tiny_grid, m, s, third * (s + 1)) for m in ("vae", "wae-imq") for s in (0, 1)]
    table = build_table(tiny_grid, tiny_grid.table("1"), runs)
    read = read_csv(io.StringIO(to_csv(table.formatted)))
    read["note"] = read["note"].astype(object).fillna("")
    pd.testing.assert_frame_equal(read, table.values, check_dtype=False, check_exact=True)


def test_text_has_the_layout_of_the_grid(tiny_grid, runs):
    lines = to_text(build_table(tiny_grid, tiny_grid.table("1"), runs).formatted).splitlines()
    assert lines[0] == "Table 1. Clustering"
    assert lines[2].split() == ["Model", "VAE", "WAE-IMQ"]
    assert lines[4].split() == ["SC↑", "0.200", "±", "0.141²⁼", "0.500", "±", "0.000¹⁼"]


def test_latex_marks_the_best_three_and_escapes(tiny_text):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, beta-vae, wae-imq, odd]").replace(
        "tables:", 'models: { odd: { model: wae-rbf, title: "50% & ~a_b" } }\ntables:', 1
    )
    grid = parse_grid(text, "g.yaml")
    models = ("vae", "beta-vae", "wae-imq", "odd")
    runs = [stored(grid, m, 0, 0.4 - i / 10) for i, m in enumerate(models)]
    latex = to_latex(build_table(grid, grid.table("1"), runs).formatted)
    assert r"\textbf{0.400}" in latex
    assert r"\textbf{\textit{0.300}}" in latex
    assert r" \textit{0.200}" in latex
    assert " 0.100" in latex
    assert r"50\% \& $\sim$a\_b" in latex
    assert r"$\beta$-VAE" in latex
    assert r"\toprule" in latex


def test_an_unknown_table_is_answered_with_the_known_ones(tiny_grid):
    with pytest.raises(UnknownNameError, match=r"unknown table of grid tiny '7'; known: 1"):
        tiny_grid.table("7")


def test_a_table_shows_other_metrics_on_demand(tiny_grid, runs):
    table = build_table(tiny_grid, tiny_grid.table("1").with_metrics(["accuracy"]), runs)
    assert {entry.metric for entry in table.entries} == {"accuracy"}
    assert "Accuracy" in to_text(table.formatted)


def test_markdown_marks_the_best_three_and_escapes(tiny_text):
    text = tiny_text.replace("[vae, wae-imq]", "[vae, beta-vae, wae-imq, odd]").replace(
        "tables:", 'models: { odd: { model: wae-rbf, title: "a|b <i> *c*" } }\ntables:', 1
    )
    grid = parse_grid(text, "g.yaml")
    models = ("vae", "beta-vae", "wae-imq", "odd")
    runs = [
        stored(grid, m, s, 0.4 - i / 10 + s / 10**5) for i, m in enumerate(models) for s in range(2)
    ]
    lines = to_markdown(build_table(grid, grid.table("1"), runs).formatted).splitlines()
    assert lines[0] == "**Table 1. Clustering**"
    assert lines[2] == r"| Metric | VAE | β-VAE | WAE-IMQ | a\|b &lt;i&gt; \*c\* |"
    assert lines[3] == "| --- | --- | --- | --- | --- |"
    assert lines[4] == (
        "| SC↑ | **0.400 ± 0.000** | ***0.300 ± 0.000*** | *0.200 ± 0.000* | 0.100 ± 0.000 |"
    )


@pytest.mark.parametrize(
    ("rows", "columns", "heads"),
    [
        ("[metric, model]", "[latent_dim]", "| Metric | Model | L = 2 | L = 4 |"),
        ("[metric]", "[latent_dim, model]", "| Metric | L = 2 / VAE | L = 2 / WAE-IMQ | L = 4 /"),
    ],
)
def test_markdown_says_what_the_numbers_above_its_columns_are(tiny_text, rows, columns, heads):
    text = tiny_text.replace("latent_dims: [2]", "latent_dims: [2, 4]")
    text = re.sub(r"rows: .*", f"rows: {rows}", re.sub(r"columns: .*", f"columns: {columns}", text))
    grid = parse_grid(text, "g.yaml")
    lines = to_markdown(build_table(grid, grid.table("1"), []).formatted).splitlines()
    assert lines[2].startswith(heads)


def test_negative_values_have_a_minus(tiny_grid):
    runs = [stored(tiny_grid, m, s, -0.25) for m in ("vae", "wae-imq") for s in (0, 1)]
    sheet = build_table(tiny_grid, tiny_grid.table("1"), runs).formatted
    assert "−0.250 ± 0.000" in to_text(sheet)
    assert "**−0.250 ± 0.000**" in to_markdown(sheet)
    assert r"\textbf{$-$0.250 $\pm$ 0.000}" in to_latex(sheet)
    assert ",-0.25," in to_csv(sheet)
