"""The report's page in a browser: what a reader sees and can do."""

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


def test_names_run_nothing(tab, hostile):
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("script").count() == 1
    assert hostile in tab.locator("h1").text_content()


def test_a_click_sorts_by_number_up_down_and_back(tab):
    printed = column(tab, "table-1", 2)
    head = tab.locator("#table-1 thead th").nth(2)
    orders = []
    for _ in range(3):
        head.get_by_role("button").click()
        texts = [text.replace("−", "-") for text in column(tab, "table-1", 2)]
        numbers = [float(text.split(" ")[0].split("±")[0]) for text in texts]
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


def test_the_filter_leaves_one_model_and_gives_all_back(tab, hostile):
    rows = tab.locator("#table-1 tbody tr")
    tab.get_by_label("Model").select_option("SWAE")
    # Controls are what any model is held against.
    names = tab.locator("#table-1 tbody th:nth-child(2)")
    assert visible(names) == ["SWAE", "PCA (control)", "SWAE"]
    # Where models are columns, the other columns go, heads and all.
    heads = visible(tab.locator("#table-2 thead th"))
    assert heads == ["Dataset", "SWAE", f"Mean {hostile} (control)"]
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


@pytest.mark.parametrize("width", [1200, 1100])
def test_what_each_cell_cost_fits_the_page(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    box = tab.locator(".scroll", has=tab.locator("#costs"))
    assert box.evaluate("box => box.scrollWidth - box.clientWidth") == 0


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
