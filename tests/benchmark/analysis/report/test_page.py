"""The report's page as text and markup, and the command that writes it."""

import base64
import hashlib
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hgmvae_bench.analysis.figures import FigureSource
from hgmvae_bench.analysis.report import build_report
from hgmvae_bench.grid import Run, load_grid
from hgmvae_bench.storage.record_file import StoreError
from hgmvae_bench.storage.schema import MetricValue, Record
from hgmvae_bench.storage.store import Store
from hgmvae_bench.storage.stored_run import StoredRun

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page)


def test_runs_of_one_machine_are_of_one_environment_whatever_they_cost(elements):
    assert "Environment 1: A <b>CPU</b>, 11 runs" in elements.text
    assert "Environment 2" not in elements.text
    assert "training 1.00 GiB" in elements.text
    assert "training 2.00 GiB" in elements.text


def test_nothing_from_a_name_becomes_markup(elements, hostile):
    assert len(elements.of("script")) == 1
    assert {image["src"].split(",")[0] for image in elements.of("img")} == {
        "data:image/svg+xml;base64"
    }
    assert not [a for _, a in elements.found for name in a if name.startswith("on")]
    assert elements.text.count(hostile) >= 2
    assert "{{ 7*7 }}" in elements.text


def test_the_policy_allows_the_pages_own_style_and_script_alone(elements, page):
    policy = next(m["content"] for m in elements.of("meta") if "http-equiv" in m)
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [attributes for _, attributes in elements.found if "style" in attributes]


def test_nothing_is_loaded_from_anywhere(elements):
    for tag, attributes in elements.found:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)


def test_tables_can_be_read_aloud(elements):
    assert len(elements.of("table")) == len(elements.of("caption")) == 4
    assert "Table 1. Clustering" in elements.text
    assert all(head.get("scope") in {"row", "col"} for head in elements.of("th"))
    assert all(image["alt"] for image in elements.of("img"))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in elements.of("a")}
    assert targets <= set(ids)


def test_the_tables_values_stand_in_the_page(elements):
    # By hand: seeds 9.04 and 9.14 at L = 4; one decimal, since another model's is over a hundred.
    assert "9.1 ± 0.1" in elements.text
    assert "n = 1 of 2: 1 × diverged" in elements.text
    assert "n = 1 of 2: 1 × not run" in elements.text


def test_controls_stand_among_the_models_without_a_rank(elements, hostile):
    assert "SC↑PCA (control)0.50.8\n" in elements.text
    across = elements.text.split("Table 2. Across")[1]
    # After SWAE's footnote, with neither rank nor tie.
    assert "tied with the besta33.5\n" in across
    rows = [a for tag, a in elements.found if tag == "tr" and "data-control" in a]
    assert rows == [{"data-control": None}]
    cells = [a for a in elements.of("td") if "data-control" in a]
    assert cells == [{"class": "value", "data-control": None}]
    # They are no model that the filter could choose.
    options = re.search(r"Model all(.*)\n", elements.text)[1]
    assert options == f"{hostile}β-VAESWAE"
    assert "Controls say what a value means" in elements.text


def test_every_run_that_lacks_a_result_is_named(elements, source):
    counts = dict(
        re.findall(r"(runs planned|complete|diverged|failed|not run)(\d+)", elements.text)
    )
    assert counts == {
        "runs planned": "12",
        "complete": "9",
        "diverged": "2",
        "failed": "0",
        "not run": "1",
    }
    assert "the loss is nan" in elements.text
    keys = {run.record.key for run in source.runs.values()}
    assert {a["id"] for a in elements.of("details") if "id" in a} == {f"run-{k}" for k in keys}


def test_fairness_says_what_each_model_cost(elements):
    table = elements.text.split("Parameters, training and time of each cell")[1]
    row = re.search(r"β-VAE8(.*?)\n", table)
    # Losses 8 → 4 and 8 → 5; 10 and 11 seconds.
    assert row[1] == "21,23428.04.543.8 %10.51.0"


def test_the_same_results_give_the_same_page(source, page):
    assert build_report(source, figures=["records"]) == page


def test_a_grid_of_the_papers_cells_is_held_against_the_paper(tmp_path, elements):
    # Published: GMVAE 0.404, HGMVAE-G 0.442 (Table 1, SC at L = 8).
    grid = load_grid("paper").select(["mnist"], ["gmvae", "hgmvae-g"], [8], seeds=4)
    runs = {}
    for cell in grid.cells:
        for seed in range(4):
            value = {"gmvae": 0.404, "hgmvae-g": 0.2}[cell.model] + (seed - 1.5) / (90 + seed)
            run = Run(cell, seed, "d")
            metrics = {"sc": MetricValue(value=value)}
            record = Record.of(run, status="complete", metrics=metrics)
            runs[run.key] = StoredRun(record, "0" * 64, metrics)
    page = build_report(FigureSource(grid, Store(tmp_path), runs, tmp_path), figures=())
    text = Elements(page).text
    assert "Controls" not in text
    assert "Against the paper" in text
    assert "The paper's claims" in text
    compared = text.split("against the paper")[1]
    assert re.search(r"SC↑GMVAE80\.404.*not distinguishable", compared)
    assert re.search(r"SC↑HGMVAE-G80\.442.*worse", compared)
    assert "Against the paper" not in elements.text


def test_the_commands_to_reproduce_it_name_the_plugins(source, elements):
    commands = [
        "run --grid grid.yaml --results results",
        "report --results results --output report.html",
    ]
    assert "".join(f"hgmvae-bench {each}\n" for each in commands).strip() in elements.text
    assert "--plugin" not in elements.text
    runs = {}
    for key, run in source.runs.items():
        provenance = {**run.record.provenance, "plugins": {"my bits.py": "d", "mine": None}}
        record = run.record.model_copy(update={"provenance": provenance})
        runs[key] = StoredRun(record, run.sha256, run.metrics)
    text = Elements(build_report(replace(source, runs=runs), figures=())).text
    options = " --plugin 'my bits.py' --plugin mine\n"
    assert "".join(f"hgmvae-bench {each}{options}" for each in commands).strip() in text


def test_figures_that_cannot_be_drawn_say_why(source):
    page = build_report(source, figures=["codes"])
    assert "not drawn: " in page
    assert "was trained on other digits data" in page


def test_without_results_there_is_no_report(source, tmp_path):
    with pytest.raises(StoreError, match="no run of the grid hostile is recorded in"):
        build_report(FigureSource(source.grid, Store(tmp_path), {}, tmp_path))
    other = FigureSource(load_grid("smoke"), source.store, source.runs, tmp_path)
    with pytest.raises(StoreError, match=r"\(it has 11 of other settings or other defaults\)"):
        build_report(other)


def test_a_report_on_the_papers_grid_is_quick_and_small(tmp_path):
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


def test_the_command_writes_the_page(source, tmp_path):
    output = tmp_path / "report.html"
    arguments = ["--results", source.store.root, "--figures", "none", "--output", output]
    outcome = subprocess.run([HGMVAE_BENCH, "report", *arguments], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{output}, ")
    # Written like any file: others may read it.
    (tmp_path / "any").touch()
    assert output.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert output.read_text(encoding="utf-8") == build_report(source, figures=())


def test_an_output_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "report.html"
    arguments = ["--results", source.store.root, "--figures", "none", "--output", output]
    outcome = subprocess.run([HGMVAE_BENCH, "report", *arguments], capture_output=True, text=True)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"error: {output}: cannot be written: ")
