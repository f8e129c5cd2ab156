"""Report on made-up results whose names and messages try to become markup."""

import json

import pytest
from bs4 import BeautifulSoup

from hgmvae_bench.analysis.figures import FigureSource
from hgmvae_bench.analysis.report import build_report
from hgmvae_bench.grid import Run, parse_grid
from hgmvae_bench.storage.schema import ControlRecord, MetricValue, Record
from hgmvae_bench.storage.store import Store

HOSTILE = (
    "</style></script><script>window.hacked = 1</script><img src=x onerror=alert(1)>"
    "<svg onload=alert(2)>\"' {{ 7*7 }}"
)

CONTROL_CHARACTERS = "\x00\x1b[31m\u202e"
"""NUL, an escape sequence for terminals, and a mark that reverses the direction of text."""

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
    metrics: [sc, ch, nmi]
    rows: [metric, model]
    columns: [latent_dim]
  - name: "2"
    title: Across
    datasets: [digits]
    models: [vae, beta-vae, swae, wae-imq]
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


def record(grid, model: str, latent_dim: int, seed: int) -> Record:
    """Record of a made-up run; SWAE's second seed diverged."""
    diverged = (model, seed) == ("swae", 1)
    metrics = {
        metric: MetricValue(value=VALUES[model] + seed / 10 + latent_dim / 100)
        for metric in ("sc", "ch", "db")
    }
    error = f"</pre>{HOSTILE}{CONTROL_CHARACTERS}\nthe loss is {CONTROL_CHARACTERS} nan"
    return Record.of(
        Run(grid.cell("digits", model, latent_dim), seed, "d"),
        status="diverged" if diverged else "complete",
        error=error if diverged else None,
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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Made-up results.

    β-VAE's second seed at L = 4 and WAE-IMQ are missing, and no run has a value of NMI. The
    diverged run at L = 4 has a log file.
    """
    grid = parse_grid(GRID, "hostile.yaml")
    store = Store(tmp_path_factory.mktemp("report"))
    store.add_grid(grid)
    for name, title, latent_dim, values in CONTROLS:
        store.add_control(
            ControlRecord(
                key=f"digits_{name}_L{latent_dim}_0" if latent_dim else f"digits_{name}_0",
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
        )
    for model in VALUES:
        for latent_dim in (4, 8):
            for seed in range(2):
                if (model, latent_dim, seed) != ("beta-vae", 4, 1):
                    store.add(record(grid, model, latent_dim, seed))
    log = store.log_path(record(grid, "swae", 4, 1).key)
    log.parent.mkdir()
    log.write_text("output")
    return FigureSource.open(store.root)


@pytest.fixture(scope="module")
def page(source):
    """HTML of the report with the figures that need records only."""
    return build_report(source, figures=["records"])


@pytest.fixture(scope="session")
def hostile():
    """Title that would run a script if it were taken for markup."""
    return HOSTILE


class ParsedPage:
    """Parsed HTML of a report."""

    def __init__(self, html: str) -> None:
        self.soup = BeautifulSoup(html, "html.parser")

    def headings(self, table: str) -> list[str]:
        """Column headings of a table."""
        return [cell.text for cell in self.soup.find(id=table).thead.find_all("th")]

    def rows(self, table: str) -> list[list[str]]:
        """Texts of a table's rows, each with the label of its group first."""
        rows = []
        for body in self.soup.find(id=table).find_all("tbody"):
            group = ""
            for row in body.find_all("tr"):
                if "group" in row.get("class", ()):
                    group = row.text
                else:
                    rows.append([group, *(cell.text for cell in row.find_all(["th", "td"]))])
        return rows

    def section(self, name: str):
        """Section with the heading ``name``."""
        return self.soup.find("section", attrs={"aria-labelledby": name})

    def facts(self, element) -> dict[str, str]:
        """Definition list in an element."""
        names = [name.text for name in element.find_all("dt")]
        return dict(zip(names, (value.text for value in element.find_all("dd")), strict=True))


@pytest.fixture(scope="session")
def parse():
    """Function that parses the HTML of a report."""
    return ParsedPage


@pytest.fixture(scope="module")
def parsed(page, parse):
    """Parsed report."""
    return parse(page)
