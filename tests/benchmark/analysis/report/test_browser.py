"""The report in a browser."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

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
    """Report in a tab; the test fails if it logs an error, opens a dialog or loads a resource."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    errors = []
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
    tab.on(
        "request",
        lambda request: request.url.startswith(("data:", file)) or errors.append(request.url),
    )
    tab.goto(file)
    yield tab
    context.close()
    assert errors == []


ROWS = "tbody tr:not(.group)"


def column(tab, table, index, group=1):
    """Texts of a column in one group of rows."""
    script = "(rows, index) => rows.map(row => row.cells[index].textContent)"
    rows = tab.locator(f"#{table} tbody:nth-of-type({group}) tr:not(.group)")
    return rows.evaluate_all(script, index)


def visible(locator):
    """Texts of the visible elements."""
    return [each.text_content() for each in locator.all() if each.is_visible()]


def test_the_page_follows_the_light_or_dark_setting(tab):
    brightness = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        pixels = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"), dtype=float)
        assert pixels.std() > 10
        brightness[scheme] = np.median(pixels)
    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_names_run_no_script(tab, hostile):
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("script").count() == 1
    assert hostile in tab.locator("h1").text_content()


def test_a_click_on_a_heading_sorts_each_group_and_restores_the_order(tab):
    original = [column(tab, "table-1", 1, group) for group in (1, 2)]
    head = tab.locator("#table-1 thead th").nth(1)
    orders = []
    for _ in range(3):
        head.get_by_role("button").click()
        texts = [text.replace("−", "-") for text in column(tab, "table-1", 1)]
        numbers = [float(re.match(r"-?\d+\.\d", text)[0]) for text in texts]
        orders.append((head.get_attribute("aria-sort"), numbers))
    (up, ascending), (down, descending), (none, restored) = orders
    assert (up, down, none) == ("ascending", "descending", None)
    # By hand: SWAE, PCA, the hostile name, β-VAE.
    assert ascending == [-2.0, 0.5, 9.1, 100.3]
    assert descending == ascending[::-1]
    assert restored != ascending
    assert [column(tab, "table-1", 1, group) for group in (1, 2)] == original
    tab.locator("#table-1 thead th").first.get_by_role("button").click()
    names = column(tab, "table-1", 0)
    assert names[-2:] == ["SWAE", "β-VAE"]
    assert head.get_attribute("aria-sort") is None


def test_a_repeated_label_is_blank_until_sorting_moves_it(tab):
    labels = tab.locator(f"#costs {ROWS} th:first-child")
    repeated = "cells => cells.map(cell => cell.classList.contains('repeated'))"
    # Three models at L = 4 and L = 8, then sorted by L.
    before = labels.evaluate_all(repeated)
    tab.locator("#costs thead th").nth(1).get_by_role("button").click()
    assert labels.evaluate_all(repeated) == [False] * 6
    assert before.count(True) == 3


def test_labels_stay_in_view_while_a_table_scrolls_sideways(tab):
    tab.set_viewport_size({"width": 390, "height": 800})
    box = tab.locator(".scroll", has=tab.locator("#costs"))
    label = tab.locator(f"#costs {ROWS} th").first
    group = tab.locator("#costs tr.group span").first
    left = label.bounding_box()["x"]
    box.evaluate("box => { box.scrollLeft = 150; }")
    assert box.evaluate("box => box.scrollLeft") == 150
    assert label.bounding_box()["x"] == left
    assert group.bounding_box()["x"] >= left


def test_headings_stay_in_view_while_a_table_scrolls_down(tab):
    tab.set_viewport_size({"width": 1200, "height": 300})
    box = tab.locator(".scroll", has=tab.locator("#table-1"))
    head = tab.locator("#table-1 thead th").nth(1)
    box.evaluate("box => { box.scrollTop = 150; }")
    assert box.evaluate("box => box.scrollTop") == 150
    assert head.bounding_box()["y"] == pytest.approx(box.bounding_box()["y"], abs=1)


def test_the_filter_selects_a_model_and_is_reset(tab, hostile):
    rows = tab.locator(f"#table-1 {ROWS}")
    tab.get_by_role("combobox", name="Model").select_option("SWAE")
    # Controls stay, because every model is compared with them.
    names = tab.locator(f"#table-1 {ROWS} th")
    assert visible(names) == ["SWAE", "PCA (control)", "SWAE"]
    # Where models are columns, the columns of the others are hidden.
    heads = visible(tab.locator("#table-2 thead th"))
    assert heads == ["Dataset", "SWAE", f"Mean {hostile} (control)"]
    assert len(visible(tab.locator("#table-2 tbody td"))) == 2
    shown = re.fullmatch(
        r"(\d+) of (\d+) table rows shown", tab.get_by_role("status").text_content()
    )
    assert 0 < int(shown[1]) < int(shown[2])
    tab.get_by_role("button", name="Show all").click()
    # The form is reset after its listeners have run.
    tab.locator(f"#table-1 {ROWS}:visible").nth(rows.count() - 1).wait_for()


def test_a_group_without_visible_rows_is_hidden(tab):
    tab.get_by_role("combobox", name="Model").select_option("WAE-IMQ")
    assert visible(tab.locator("#costs tr.group")) == []
    assert visible(tab.locator("#table-1 tr.group")) == ["SC↑"]


def test_controls_can_be_hidden(tab):
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


def test_the_page_works_by_keyboard(tab):
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the findings"
    assert tab.locator(".skip").bounding_box()["x"] >= 0
    button = tab.locator("#table-1 thead th").nth(1).get_by_role("button")
    button.focus()
    assert button.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.locator("#table-1 thead th").nth(1).get_attribute("aria-sort") == "ascending"
    cell = tab.locator("section[aria-labelledby=runs] > details").first
    cell.locator("> summary").focus()
    tab.keyboard.press("Enter")
    run = cell.locator("details").first
    assert run.is_visible()
    run.locator("> summary").focus()
    tab.keyboard.press("Space")
    assert run.get_by_text("Parameters").is_visible()


def test_a_diverged_run_links_to_its_details(tab):
    link = tab.locator("#unsuccessful tbody a").first
    run = tab.locator(link.get_attribute("href"))
    reason = run.locator("pre")
    assert not run.is_visible()
    link.click()
    assert reason.is_visible()
    # The same link opens the details again, although the address does not change.
    run.locator("> summary").click()
    assert not reason.is_visible()
    link.click()
    assert reason.is_visible()


def test_the_address_of_a_run_opens_its_details(tab, file):
    address = tab.locator("#unsuccessful tbody a").first.get_attribute("href")
    reason = tab.locator(address).locator("pre")
    # The open page receives the new address a moment later.
    tab.goto(file + address)
    reason.wait_for()
    tab.reload()
    assert reason.is_visible()


@pytest.mark.parametrize("width", [1200, 400])
def test_only_tables_scroll_sideways(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [1200, 1100])
def test_the_table_of_costs_fits_the_page(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    box = tab.locator(".scroll", has=tab.locator("#costs"))
    assert box.evaluate("box => box.scrollWidth - box.clientWidth") == 0


def test_images_are_loaded(tab):
    for image in tab.locator("img").all():
        assert image.evaluate("node => node.complete && node.naturalWidth") > 100


def test_the_page_is_complete_without_scripts(browser, file):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file)
    assert tab.locator(f"#table-1 {ROWS}").count() == 7
    assert tab.locator("#table-1 tbody").get_by_text("PCA (control)").is_visible()
    assert tab.locator("#table-1").is_visible()
    assert not tab.locator("#filter").is_visible()
    assert tab.get_by_role("button").count() == 0
    tab.locator("section[aria-labelledby=runs] > details > summary").first.click()
    assert tab.locator("section[aria-labelledby=runs] details details").first.is_visible()
    context.close()
