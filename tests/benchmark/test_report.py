import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgmvae_bench.figures import Results
from hgmvae_bench.grid import Run, load_grid, parse_grid
from hgmvae_bench.records import ControlRecord, MetricValue, Record
from hgmvae_bench.report import build_report
from hgmvae_bench.sealing import StoreError
from hgmvae_bench.store import Store, StoredRun

HGMVAE_BENCH = Path(sys.executable).with_name("hgmvae-bench")

HOSTILE = (
    "</style></script><script>window.hacked = 1</script><img src=x onerror=alert(1)>\"' {{ 7*7 }}"
)

GRID = f"""
name: hostile
title: {json.dumps(HOSTILE)}
seeds: 2
datasets:
  digits: {{ title: 'Digits "<b>"' }}
models:
  vae: {{ title: {json.dumps(HOSTILE)} }}
tables:
  - name: "1"
    title: Clustering
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [4, 8]
    metrics: [sc, ch]
    rows: [metric, model]
    columns: [latent_dim]
  - name: "2"
    title: Across
    datasets: [digits]
    models: [vae, beta-vae, swae]
    latent_dims: [8]
    metrics: [db]
    rows: [dataset]
    columns: [model]
"""

VALUES = {"vae": 9.0, "beta-vae": 100.25, "swae": -2.0}

# Name, title, L and values.
CONTROLS = [
    ("pca", "PCA", 4, {"sc": 0.5}),
    ("pca", "PCA", 8, {"sc": 0.75}),
    ("mean-image", f"Mean {HOSTILE}", None, {"db": 33.5}),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Made-up records; swae's second seed diverged, beta-vae's second at L = 4 was never run."""
    grid = parse_grid(GRID, "hostile.yaml")
    store = Store(tmp_path_factory.mktemp("report"))
    store.add_grid(grid)
    for name, title, latent_dim, values in CONTROLS:
        control = ControlRecord(
            key=f"digits_{name}_L{latent_dim}",
            control=name,
            title=title,
            dataset="digits",
            image_size=32,
            train_images=None,
            data_digest="d",
            latent_dim=latent_dim,
            comparable=True,
            metrics={metric: MetricValue(value=value) for metric, value in values.items()},
        )
        store.add_control(control)
    for model, value in VALUES.items():
        for latent_dim in (4, 8):
            for seed in range(2):
                if (model, latent_dim, seed) == ("beta-vae", 4, 1):
                    continue
                diverged = (model, seed) == ("swae", 1)
                metrics = {
                    metric: MetricValue(value=value + seed / 10 + latent_dim / 100)
                    for metric in ("sc", "ch", "db")
                }
                record = Record.of(
                    Run(grid.cell("digits", model, latent_dim), seed, "d"),
                    status="diverged" if diverged else "complete",
                    error=f"</pre>{HOSTILE}\nthe loss is nan" if diverged else None,
                    metrics={} if diverged else metrics,
                    history={"loss": [8.0, 4.0 + seed]},
                    n_parameters=1234,
                    seconds={"training": 10.0 + seed, "scoring": 1.0},
                    provenance={
                        "cpu": "A <b>CPU</b>",
                        "gpu": None,
                        "packages": {"torch": "2.11"},
                        "stages": {"training": {"peak_bytes": (1 + seed) * 2**30}},
                    },
                )
                store.add(record)
    return Results.open(store.root)


@pytest.fixture(scope="module")
def page(results):
    return build_report(results, figures=["records"])


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


def test_nothing_from_a_name_becomes_markup(elements):
    assert len(elements.of("script")) == 1
    assert {image["src"].split(",")[0] for image in elements.of("img")} == {
        "data:image/svg+xml;base64"
    }
    assert not [a for _, a in elements.found for name in a if name.startswith("on")]
    assert elements.text.count(HOSTILE) >= 2
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


def test_controls_stand_among_the_models_without_a_rank(elements):
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
    assert options == f"{HOSTILE}β-VAESWAE"
    assert "Controls say what a value means" in elements.text


def test_every_run_that_lacks_a_result_is_named(elements, results):
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
    keys = {run.record.key for run in results.runs.values()}
    assert {a["id"] for a in elements.of("details") if "id" in a} == {f"run-{k}" for k in keys}


def test_fairness_says_what_each_model_cost(elements):
    table = elements.text.split("Parameters, training and time of each cell")[1]
    row = re.search(r"β-VAE8(.*?)\n", table)
    # Losses 8 → 4 and 8 → 5; 10 and 11 seconds.
    assert row[1] == "21,23428.04.543.8 %10.51.0"


def test_the_same_results_give_the_same_page(results, page):
    assert build_report(results, figures=["records"]) == page


def test_a_grid_of_the_papers_cells_is_held_against_the_paper(tmp_path, elements):
    # Published: GMVAE 0.404, HGMVAE-G 0.442 (Table 1, SC at L = 8).
    grid = load_grid("paper").select(["mnist"], ["gmvae", "hgmvae-g"], [8], seeds=3)
    runs = {}
    for cell in grid.cells:
        for seed in range(3):
            value = {"gmvae": 0.404, "hgmvae-g": 0.2}[cell.model] + (seed - 1) / (90 + seed)
            run = Run(cell, seed, "d")
            metrics = {"sc": MetricValue(value=value)}
            record = Record.of(run, status="complete", metrics=metrics)
            runs[run.key] = StoredRun(record, "0" * 64, metrics)
    page = build_report(Results(grid, Store(tmp_path), runs, tmp_path), figures=())
    text = Elements(page).text
    assert "Controls" not in text
    assert "Against the paper" in text
    assert "The paper's claims" in text
    compared = text.split("against the paper")[1]
    assert re.search(r"SC↑GMVAE80\.404.*reproduced", compared)
    assert re.search(r"SC↑HGMVAE-G80\.442.*worse", compared)
    assert "Against the paper" not in elements.text


def test_figures_that_cannot_be_drawn_say_why(results):
    page = build_report(results, figures=["codes"])
    assert "not drawn: " in page
    assert "was trained on other digits data" in page


def test_without_results_there_is_no_report(results, tmp_path):
    with pytest.raises(StoreError, match="no run of the grid hostile is recorded in"):
        build_report(Results(results.grid, Store(tmp_path), {}, tmp_path))
    other = Results(load_grid("smoke"), results.store, results.runs, tmp_path)
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
    page = build_report(Results(grid, store, runs, tmp_path), figures=())
    # Three seconds on an idle machine.
    assert time.process_time() - start < 15
    assert len(page) < 3e6
    assert page.count('<details id="run-') == 830


def test_the_command_writes_the_page(results, tmp_path):
    output = tmp_path / "report.html"
    arguments = ["--results", results.store.root, "--figures", "none", "--output", output]
    outcome = subprocess.run([HGMVAE_BENCH, "report", *arguments], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(f"{output}, ")
    # Written like any file: others may read it.
    (tmp_path / "any").touch()
    assert output.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert output.read_text(encoding="utf-8") == build_report(results, figures=())


def test_an_output_that_cannot_be_written_is_named(results, tmp_path):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "report.html"
    arguments = ["--results", results.store.root, "--figures", "none", "--output", output]
    outcome = subprocess.run([HGMVAE_BENCH, "report", *arguments], capture_output=True, text=True)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"error: {output}: cannot be written: ")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package chromium has it")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def tab(browser, file):
    """The report in a tab; the test fails if it logs an error, opens a dialog or asks for more."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    faults = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
    tab.on(
        "request",
        lambda request: request.url.startswith(("data:", file)) or faults.append(request.url),
    )
    tab.goto(file)
    yield tab
    context.close()
    assert faults == []


def column(tab, table, place):
    script = "(rows, place) => rows.map(row => row.cells[place].textContent)"
    return tab.locator(f"#{table} tbody tr").evaluate_all(script, place)


def visible(locator):
    return [each.text_content() for each in locator.all() if each.is_visible()]


def test_it_is_seen_in_light_and_in_dark(tab):
    brightness = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        pixels = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"), dtype=float)
        assert pixels.std() > 10
        brightness[scheme] = np.median(pixels)
    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_names_run_nothing(tab):
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("script").count() == 1
    assert HOSTILE in tab.locator("h1").text_content()


def test_a_click_sorts_by_number_up_down_and_back(tab):
    printed = column(tab, "table-1", 2)
    head = tab.locator("#table-1 thead th").nth(2)
    orders = []
    for _ in range(3):
        head.get_by_role("button").click()
        numbers = [float(text.split(" ")[0].split("±")[0]) for text in column(tab, "table-1", 2)]
        orders.append((head.get_attribute("aria-sort"), numbers))
    (up, ascending), (down, descending), (none, back) = orders
    assert (up, down, none) == ("ascending", "descending", None)
    assert ascending == sorted(ascending) != back
    assert descending == ascending[::-1] or descending == sorted(descending, reverse=True)
    assert column(tab, "table-1", 2) == printed
    tab.locator("#table-1 thead th").nth(1).get_by_role("button").click()
    names = column(tab, "table-1", 1)
    assert names != sorted(names) or names[0] == names[1]
    assert names[:2] == [names[0]] * 2
    assert head.get_attribute("aria-sort") is None


def test_the_filter_leaves_one_model_and_gives_all_back(tab):
    rows = tab.locator("#table-1 tbody tr")
    tab.get_by_label("Model").select_option("SWAE")
    # Controls are what any model is held against.
    names = tab.locator("#table-1 tbody th:nth-child(2)")
    assert visible(names) == ["SWAE", "PCA (control)", "SWAE"]
    # Where models are columns, the other columns go, heads and all.
    heads = visible(tab.locator("#table-2 thead th"))
    assert heads == ["Dataset", "SWAE", f"Mean {HOSTILE} (control)"]
    assert len(visible(tab.locator("#table-2 tbody td"))) == 2
    shown = re.fullmatch(
        r"(\d+) of (\d+) table rows shown", tab.get_by_role("status").text_content()
    )
    assert 0 < int(shown[1]) < int(shown[2])
    tab.get_by_role("button", name="Show all").click()
    # A form is reset only after its listeners have run: the page acts a moment later.
    tab.locator("#table-1 tbody tr:visible").nth(rows.count() - 1).wait_for()


def test_controls_can_be_put_away(tab):
    places = tab.locator("[data-control]")
    assert len(visible(places)) == places.count() == 3
    box = tab.get_by_role("checkbox", name="Controls")
    box.focus()
    tab.keyboard.press("Space")
    assert visible(places) == []
    assert visible(tab.locator("#table-2 thead th"))[-1] == "SWAE"
    shown, rows = re.findall(r"\d+", tab.get_by_role("status").text_content())
    assert int(shown) == int(rows) - 1
    tab.get_by_role("button", name="Show all").click()
    places.first.wait_for()
    assert box.is_checked()


def test_the_keyboard_is_enough(tab):
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the tables"
    assert tab.locator(".skip").bounding_box()["x"] >= 0
    button = tab.locator("#table-1 thead th").nth(2).get_by_role("button")
    button.focus()
    assert button.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.locator("#table-1 thead th").nth(2).get_attribute("aria-sort") == "ascending"
    cell = tab.locator("section[aria-labelledby=runs] > details").first
    cell.locator("> summary").focus()
    tab.keyboard.press("Enter")
    run = cell.locator("details").first
    assert run.is_visible()
    run.locator("> summary").focus()
    tab.keyboard.press("Space")
    assert run.get_by_text("Parameters").is_visible()


def test_a_diverged_run_leads_to_its_details(tab):
    link = tab.locator("#unsuccessful tbody a").first
    run = tab.locator(link.get_attribute("href"))
    reason = run.get_by_text("the loss is nan")
    assert not run.is_visible()
    link.click()
    assert reason.is_visible()
    # Folded again: the same link opens it, though the address does not change.
    run.locator("> summary").click()
    assert not reason.is_visible()
    link.click()
    assert reason.is_visible()


def test_the_address_of_a_run_leads_to_its_details(tab, file):
    address = tab.locator("#unsuccessful tbody a").first.get_attribute("href")
    reason = tab.locator(address).get_by_text("the loss is nan")
    # In the page that is open the browser tells of the new address a moment later.
    tab.goto(file + address)
    reason.wait_for()
    tab.reload()
    assert reason.is_visible()


@pytest.mark.parametrize("width", [1200, 400])
def test_only_tables_scroll_sideways(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_pictures_are_drawn(tab):
    for image in tab.locator("img").all():
        assert image.evaluate("node => node.complete && node.naturalWidth") > 100


def test_without_scripts_all_is_there_and_nothing_is_dead(browser, file):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file)
    assert tab.locator("#table-1 tbody tr").count() == 7
    assert tab.locator("#table-1 tbody").get_by_text("PCA (control)").is_visible()
    assert tab.locator("#table-1").is_visible()
    assert not tab.locator("#filter").is_visible()
    assert tab.get_by_role("button").count() == 0
    tab.locator("section[aria-labelledby=runs] > details > summary").first.click()
    assert tab.locator("section[aria-labelledby=runs] details details").first.is_visible()
    context.close()
