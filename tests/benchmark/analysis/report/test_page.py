"""Content and markup of the report, and the command that writes it."""

import base64
import hashlib
import re
import time
from dataclasses import replace
from functools import partial

import pytest
from bs4 import BeautifulSoup

from hgmvae_bench.analysis.claims import DISENTANGLEMENT_CLAIMS
from hgmvae_bench.analysis.figures import FigureSource
from hgmvae_bench.analysis.report import build_report
from hgmvae_bench.grid import Run, load_grid
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun


@pytest.fixture(scope="module")
def paper_page(tmp_path_factory, parse):
    """Report on four seeds of two published cells: GMVAE 0.404, HGMVAE-G 0.442 (SC at L = 8)."""
    grid = load_grid("paper").select(["mnist"], ["gmvae", "hgmvae-g"], [8], seeds=4)
    runs = {}
    for cell in grid.cells:
        for seed in range(4):
            value = {"gmvae": 0.404, "hgmvae-g": 0.2}[cell.model] + (seed - 1.5) / (90 + seed)
            run = Run(cell, seed, "d")
            metrics = {"sc": MetricValue(value=value)}
            record = Record.of(run, status="complete", metrics=metrics)
            runs[run.key] = StoredRun(record, "0" * 64, metrics)
    folder = tmp_path_factory.mktemp("paper")
    return parse(build_report(FigureSource(grid, Store(folder), runs, folder), figures=()))


def test_another_folder_is_compared_in_a_section_of_its_own(source, tmp_path, parse):
    other = Store(tmp_path / "other")
    for stored in source.runs.values():
        other.add(stored.record)
    soup = parse(build_report(source, figures=(), against=other.root)).soup
    section = soup.find(id="against").find_parent("section")
    assert str(other.root) in section.text
    rows = [cells for row in section.select("tbody tr") if (cells := row.find_all("td"))]
    outcomes = {cells[-1].text.strip() for cells in rows}
    assert outcomes == {"equal"}


def test_sections_run_from_findings_to_provenance(parsed, paper_page):
    titles = [heading.text for heading in parsed.soup.find_all("h2")]
    assert titles == [
        "Findings",
        "Tables",
        "Figures",
        "Failed and missing runs",
        "Costs and convergence",
        "Runs",
        "How to reproduce",
        "Provenance",
    ]
    links = [link.text for link in parsed.soup.nav.find_all("a")]
    assert links == titles
    assert "Comparison with the paper" in [h.text for h in paper_page.soup.find_all("h2")]


def test_findings_count_the_runs(parsed):
    assert parsed.facts(parsed.section("findings").find(class_="counts")) == {
        "runs planned": "14",
        "complete": "9",
        "diverged": "2",
        "failed": "0",
        "not run": "3",
    }


def test_findings_name_the_best_model_of_each_dataset_and_metric(parsed, hostile):
    assert parsed.headings("best") == ["Metric", "Model", "L", "Value", "n", "Cells", "Tied with"]
    # SC at L = 8: 100.33 and 100.43 of β-VAE against 9.08 and 9.18, and one seed of SWAE.
    assert parsed.rows("best") == [
        ['Digits "<b>"', "SC↑", "β-VAE", "8", "100.4 ± 0.1", "2", "6", "SWAE"],
        ['Digits "<b>"', "CH↑", "β-VAE", "8", "100.4 ± 0.1", "2", "6", "SWAE"],
        ['Digits "<b>"', "DB↓", "SWAE", "8", "−1.920", "1", "3", f"{hostile}, β-VAE"],
    ]


def test_tables_group_rows_and_show_each_value(parsed, hostile):
    assert parsed.headings("table-1") == ["Model", "L = 4", "L = 8"]
    rows = parsed.rows("table-1")
    assert [row[:2] for row in rows[:4]] == [
        ["SC↑", hostile],
        ["SC↑", "β-VAE"],
        ["SC↑", "SWAE"],
        ["SC↑", "PCA (control)"],
    ]
    # By hand: seeds 9.04 and 9.14 at L = 4; one decimal, since β-VAE is over a hundred.
    assert rows[0][2].startswith("9.1 ± 0.1")
    assert rows[3][2:] == ["0.5", "0.8"]
    notes = parsed.soup.find(id="tables").parent.find_all(class_="notes")[0].text
    assert "n = 1 of 2: 1 × diverged" in notes
    assert "n = 1 of 2: 1 × not run" in notes


def test_rows_and_columns_without_a_value_are_folded(parsed):
    assert "NMI↑" not in {row[0] for row in parsed.rows("table-1")}
    assert "WAE-IMQ" not in parsed.headings("table-2")
    of_rows, of_columns = parsed.section("tables").find_all("details")
    assert of_rows.summary.text == "Rows and columns without a value (3)"
    assert "not scored" in of_rows.text
    assert {"NMI↑, β-VAE", "NMI↑, SWAE"} <= set(re.split("; |\n", of_rows.dl.get_text("\n")))
    assert of_columns.summary.text == "Rows and columns without a value (1)"
    assert "WAE-IMQ" in of_columns.text


def test_a_table_without_any_value_has_no_rows(source, parse):
    runs = {key: StoredRun(run.record, run.sha256, {}) for key, run in source.runs.items()}
    store = Store(source.store.root / "no-controls")
    page = parse(build_report(replace(source, runs=runs, store=store), figures=()))
    assert page.soup.find(id="table-1") is None
    tables = page.section("tables")
    assert tables.h3.text == "Table 1. Clustering"
    assert "No cell of this table has a value" in tables.text
    assert "Rows and columns without a value (9)" in tables.text


def test_equal_legends_appear_once(parsed):
    legends = [legend.text for legend in parsed.section("tables").find_all(class_="legend")]
    assert sum("standard deviation over seeds" in legend for legend in legends) == 1


def test_controls_have_no_rank_and_no_entry_in_the_filter(parsed, hostile):
    across = parsed.rows("table-2")[0]
    assert parsed.headings("table-2")[-1] == f"Mean {hostile} (control)"
    assert across[-1] == "33.5"
    rows = parsed.soup.find_all("tr", attrs={"data-control": True})
    assert [row.th.text for row in rows] == ["PCA (control)"]
    cells = parsed.soup.find_all("td", attrs={"data-control": True})
    assert [cell["class"] for cell in cells] == [["value"]]
    options = [
        option.text for option in parsed.soup.find("select", attrs={"name": "model"})("option")
    ]
    assert options == ["all", hostile, "β-VAE", "SWAE", "WAE-IMQ"]
    assert "Controls show what a value means" in parsed.section("tables").text


def test_diverged_runs_are_listed_with_reason_and_log_file(parsed, source):
    rows = parsed.rows("unsuccessful")
    keys = [key for key, run in source.runs.items() if run.record.status == "diverged"]
    headings = parsed.headings("unsuccessful")
    assert headings == ["Model", "L", "Seed", "Status", "Run", "Reason", "Log file"]
    assert sorted(row[5] for row in rows) == sorted(keys)
    assert [row[1:5] for row in rows] == [["SWAE", L, "1", "diverged"] for L in ("4", "8")]
    assert all(re.fullmatch(r"the loss is .* nan", row[6]) for row in rows)
    assert [row[7] for row in rows] == [f"logs/{rows[0][5]}.log", "–"]


def test_the_reason_of_a_failed_run_is_its_whole_message(source):
    key, run = next((k, r) for k, r in source.runs.items() if r.record.status == "diverged")
    frame = (
        'Traceback (most recent call last):\n  File "model.py", line 1, in step\n    raise error\n'
    )
    failed = {"status": "failed", "error": f"{frame}RuntimeError: the layer has\nno inverse"}
    changed = replace(run, record=run.record.model_copy(update=failed))
    page = build_report(replace(source, runs={**source.runs, key: changed}), figures=())
    rows = BeautifulSoup(page, "html.parser").find(id="unsuccessful").tbody.find_all("tr")
    (row,) = (row for row in rows if key in row.text)
    assert "RuntimeError: the layer has no inverse" in [cell.text for cell in row("td")]


def test_missing_runs_are_counted_by_model(parsed):
    details = parsed.section("incomplete").find("details")
    assert details.summary.text == "3 of 14 runs are missing"
    assert [item.text for item in details.find_all("li")] == [
        'Digits "<b>", β-VAE: 1 seed at L = 4',
        'Digits "<b>", WAE-IMQ: 2 seeds at L = 8',
    ]


def test_costs_are_means_over_complete_runs(parsed):
    (row,) = [row for row in parsed.rows("costs") if row[1:3] == ["β-VAE", "8"]]
    # Losses 8 → 4 and 8 → 5; 10 and 11 seconds.
    assert row[3:] == ["2", "1,234", "2", "8.0", "4.5", "43.8 %", "10.5", "1.0"]


def test_every_run_has_details(parsed, source):
    details = parsed.section("runs").find_all("details", id=True)
    assert {each["id"] for each in details} == {f"run-{key}" for key in source.runs}
    peaks = {parsed.facts(each)["Memory, peak"] for each in details}
    assert peaks == {"training 1.00 GiB", "training 2.00 GiB"}


def test_runs_of_one_machine_share_an_environment(parsed):
    environments = [each.summary.text for each in parsed.section("provenance").find_all("details")]
    assert environments == ["Environment 1: A <b>CPU</b>, 11 runs"]


def test_names_do_not_become_markup(parsed, hostile):
    assert len(parsed.soup.find_all("script")) == 1
    assert len(parsed.soup.find_all("style")) == 1
    assert parsed.soup.find_all("svg") == []
    images = {image["src"].split(",")[0] for image in parsed.soup.find_all("img")}
    assert images == {"data:image/svg+xml;base64"}
    for tag in parsed.soup.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on")]
    assert parsed.soup.h1.text == hostile
    assert "{{ 7*7 }}" in parsed.soup.h1.text


def test_control_characters_are_escaped(parsed, page):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert r"the loss is \x00\x1b[31m\u202e nan" in parsed.rows("unsuccessful")[0][6]


def test_embedded_figures_hold_no_script(parsed):
    for image in parsed.soup.find_all("img"):
        svg = base64.b64decode(image["src"].split(",")[1])
        assert b"<script" not in svg
        assert b"onload" not in svg.replace(b"onload=alert", b"")


def test_the_policy_allows_only_the_pages_own_style_and_script(parsed):
    policy = parsed.soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    for tag in ("style", "script"):
        (element,) = parsed.soup.find_all(tag)
        digest = base64.b64encode(hashlib.sha256(element.string.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert parsed.soup.find_all(style=True) == []


def test_nothing_is_loaded_from_elsewhere(parsed):
    for name in ("src", "href"):
        for tag in parsed.soup.find_all(attrs={name: True}):
            assert tag[name].startswith(("#", "data:")), tag


def test_markup_is_accessible(parsed):
    tables = parsed.soup.find_all("table")
    assert len(tables) == 5
    assert all(table.caption.text for table in tables)
    scopes = {head.get("scope") for head in parsed.soup.find_all("th")}
    assert scopes == {"row", "col", "rowgroup"}
    assert all(image["alt"] for image in parsed.soup.find_all("img"))
    ids = [tag["id"] for tag in parsed.soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in parsed.soup.find_all("a")} <= set(ids)


def test_the_same_results_give_the_same_page(source, page):
    assert build_report(source, figures=["records"]) == page


def test_published_cells_are_compared_with_the_paper(paper_page, parsed):
    rows = paper_page.rows("table-1-paper")
    assert [(*row[:4], row[-1]) for row in rows] == [
        ("MNIST · SC↑", "GMVAE", "8", "0.404", "not distinguishable (n = 4)"),
        ("MNIST · SC↑", "HGMVAE-G", "8", "0.442", "worse"),
    ]
    claims = [row[1] for row in paper_page.rows("claims")]
    assert len(claims) == 9
    assert claims[0].startswith("HGMVAE (the better of -G and -U) clusters better than GMVAE")
    assert parsed.section("paper") is None
    assert parsed.soup.find(id="claims") is None


def report_with(tmp_path, grid, metrics):
    """Report on one run of each of a grid's cells with these metrics."""
    runs = {}
    for cell in grid.cells:
        values = {metric: MetricValue(value=value) for metric, value in metrics.items()}
        record = Record.of(Run(cell, 0, "d"), status="complete", metrics=values)
        runs[record.key] = StoredRun(record, "0" * 64, values)
    return build_report(FigureSource(grid, Store(tmp_path), runs, tmp_path), figures=())


def test_tables_of_clustering_have_rows_for_the_recorded_own_clusters(tmp_path, parse):
    grid = load_grid("paper").select(["mnist"], ["gmvae"], [8])
    own = {"own-accuracy": 0.75, "own-ari": 0.5, "rate": 10.0}
    page = parse(report_with(tmp_path, grid, {"sc": 0.4, "svm-accuracy": 0.9, **own}))
    rows = {row[-3]: row[-1] for row in page.rows("table-1")}
    assert rows["Accuracy (own clusters)↑"].startswith("0.750")
    assert rows["ARI (own clusters)↑"].startswith("0.500")
    assert "NMI (own clusters)↑" not in rows
    assert "own clusters" not in page.soup.find(id="table-2").text
    # The paper has no own clusters to compare with.
    assert "own clusters" not in page.section("paper").text
    best = page.soup.find(id="best").text
    assert "own clusters" in best
    assert "Rate" not in best


def test_a_grid_with_own_clusters_in_a_table_has_them_once(tmp_path, parse):
    grid = load_grid("ablations").select(models=["hgmvae-u"])
    page = parse(report_with(tmp_path, grid, {"own-accuracy": 0.75, "own-purity": 0.8}))
    headings = page.headings("table-1")
    assert headings.count("Accuracy (own clusters)↑") == 1


def test_claims_of_a_grid_beyond_the_paper_are_among_the_findings(tmp_path, parse):
    grid = load_grid("disentanglement").select(models=["vae", "hgmvae-g"])
    page = parse(report_with(tmp_path, grid, {"mig": 0.2}))
    assert page.section("paper") is None
    claims = page.rows("claims")
    assert [row[1] for row in claims] == [
        f"{claim.statement} (most of 4)" for claim in DISENTANGLEMENT_CLAIMS
    ]
    assert claims[0][3:] == ["undecided", "undecided 1, not measured 3"]
    assert claims[1][3:] == ["not measured", "not measured 4"]


def test_the_heatmap_comes_first(tmp_path, parse, published_runs):
    grid = load_grid("paper")
    selected = grid.select(["mnist"], ["gmvae"], [8])
    runs = {run.record.key: run for run in published_runs(selected, 0.1)}
    source = FigureSource(grid, Store(tmp_path), runs, tmp_path)
    page = parse(build_report(source, figures=["records"]))
    images = page.soup.find_all("img")
    assert images[0].find_parent("section") == page.section("findings")
    assert re.search(r"of the paper's 392 values measured: .*not measured", images[0]["alt"])
    assert sum("392 values" in image["alt"] for image in images) == 1


def test_commands_name_the_plugins(source, parsed, parse):
    plain = parsed.section("reproduce").pre.text
    assert plain.splitlines() == [
        "hgmvae-bench run --grid grid.yaml --results results",
        "hgmvae-bench report --results results --output report.html",
    ]
    runs = {}
    for key, run in source.runs.items():
        provenance = {**run.record.provenance, "plugins": {"my bits.py": "d", "mine": None}}
        record = run.record.model_copy(update={"provenance": provenance})
        runs[key] = StoredRun(record, run.sha256, run.metrics)
    page = parse(build_report(replace(source, runs=runs), figures=()))
    commands = page.section("reproduce").pre.text.splitlines()
    assert commands == [
        f"{line} --plugin 'my bits.py' --plugin mine" for line in plain.splitlines()
    ]


def test_figures_that_cannot_be_drawn_come_with_the_reason(source, parse):
    page = parse(build_report(source, figures=["codes"]))
    reasons = [each.text for each in page.soup.find_all(class_="not-drawn")]
    assert len(reasons) == 1
    assert "not drawn: " in reasons[0]
    assert "was trained on other digits data" in reasons[0]


def test_without_runs_of_the_grid_there_is_no_report(source, tmp_path):
    with pytest.raises(StoreError, match="no run of the grid hostile"):
        build_report(FigureSource(source.grid, Store(tmp_path), {}, tmp_path))
    other = FigureSource(load_grid("smoke"), source.store, source.runs, tmp_path)
    with pytest.raises(StoreError, match="11 have other settings"):
        build_report(other)


def test_a_report_on_the_papers_grid_is_fast_and_small(tmp_path):
    grid, store, runs = load_grid("paper"), Store(tmp_path), {}
    for cell, metrics in grid.cells.items():
        for seed in range(10):
            values = {m: MetricValue(value=seed + len(m) / 7) for m in metrics}
            history = {term: [3.0] * 10 for term in ("loss", "recon_loss", "z_prior")}
            record = Record.of(
                Run(cell, seed, cell.dataset), status="complete", metrics=values, history=history
            )
            runs[record.key] = StoredRun(record, "0" * 64, dict(values))
    assert len(runs) == 830
    start = time.process_time()
    page = build_report(FigureSource(grid, store, runs, tmp_path), figures=())
    # Three seconds on an idle machine.
    assert time.process_time() - start < 15
    assert len(page) < 3e6
    assert page.count('<details id="run-') == 830


@pytest.fixture
def write_report(cli, source):
    """Function that writes the report to a file by the command."""
    command = ("report", "--results", source.store.root, "--figures", "none", "--output")
    return partial(cli, *command)


def test_the_command_writes_the_page(source, write_report, tmp_path):
    output = tmp_path / "report.html"
    outcome = write_report(output)
    assert outcome.exit_status == 0, outcome.stderr
    assert str(output) in outcome.stdout
    # The file has the default permissions, so that others may read it.
    (tmp_path / "any").touch()
    assert output.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert output.read_text(encoding="utf-8") == build_report(source, figures=())


def test_an_error_names_the_output_that_cannot_be_written(write_report, tmp_path):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "report.html"
    outcome = write_report(output)
    assert outcome.exit_status == 2
    assert f"{output}: cannot be written" in outcome.stderr
