"""Generates the reference pages, the results pages and the leaderboard.

Run by mkdocs (plug-in gen-files). The pages are built from code, READMEs and records, so none can
be out of date.
"""

from __future__ import annotations

import html
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import mkdocs_gen_files
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

import hgmvae_bench
from hgmvae_bench.analysis.leaderboard import leaderboards
from hgmvae_bench.cli import app
from hgmvae_bench.grid import GridSpec
from hgmvae_bench.plugins.registry import DATASETS, METRICS, MODELS
from hgmvae_bench.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/hgmvae-bench/hgmvae-bench/blob/main"
TREE = "https://github.com/hgmvae-bench/hgmvae-bench/tree/main"
RESULTS = ("measured", "ablations", "disentanglement", "study")
PUBLIC_MODULES = (
    "hgmvae_bench.plugins.protocols",
    "hgmvae_bench.plugins.image_data",
    "hgmvae_bench.grid.spec",
    "hgmvae_bench.grid.cells",
)

API_SECTIONS = {
    "Run grids": [
        "run_grid",
        "execution.options.ExecutionOptions",
        "plan_grid",
        "evaluate_grid",
    ],
    "Read results": [
        "Results",
        "load_results",
        "load_history",
        "published",
    ],
    "Check for regressions": [
        "check_grid",
        "execution.check.CheckOutcome",
        "RegressionError",
        "update_baseline",
    ],
    "Make grids": ["make_grid", "load_grid", "Grid", "GridSpec"],
}
"""Sections of the API page: names of `hgmvae_bench` and of the types that they need."""

VALUES = """
## Values

Grid files are YAML 1.2. `1e-3` is a number; `yes`, `on`, `1:30` and `2026-11-29` are text. An
integer with a leading zero is refused, because YAML 1.1 reads it as octal. Numbers are finite
and within the limits of the tables above.

A grid has at most 2,000,000 runs. Its file has at most 1,000,000 bytes and 100,000 keys and values,
counting an alias with everything that it refers to. Names and titles must not contain control
characters or other invisible characters.
"""
"""How the values of a grid file are read, and the limits of the whole file."""


def write(path: str, lines: Iterator[str]) -> None:
    """Write one generated page."""
    with mkdocs_gen_files.open(path, "w") as page:
        page.write("\n".join(lines) + "\n")


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("[", "\\[").split())


def code(text: str) -> str:
    """Text in code font for a cell of a Markdown table."""
    text = html.escape(text).replace("|", "&#124;").replace("[", "&#91;")
    return f"<code>{text}</code>"


def command_page() -> Iterator[str]:
    """Every command with its options."""
    yield "# Command line\n"
    yield "`hgmvae-bench --help` and `hgmvae-bench COMMAND --help` print the same.\n"
    root = typer.main.get_command(app)
    with typer.Context(root, info_name="hgmvae-bench") as context:
        yield from command_section(root, context, "hgmvae-bench")


def command_section(command: Any, context: typer.Context, name: str) -> Iterator[str]:
    """One command and those below it; Typer may have a click of its own, so no class is named."""
    yield f"## `{name}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    yield f"```\n{usage}\n```\n"
    yield "| option | meaning |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"| {code(record[0])} | {escaped(record[1])} |"
    yield ""
    if isinstance(command, TyperGroup):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            with typer.Context(child, info_name=child_name, parent=context) as below:
                yield from command_section(child, below, f"{name} {child_name}")


def registry_page(title: str, intro: str, registry: Any, extra: dict[str, str]) -> Iterator[str]:
    """A table of one registry's plug-ins."""
    yield f"# {title}\n"
    yield f"{intro}\n"
    heads = ["name", "title", *extra.values(), "reference"]
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for name in registry:
        plugin = registry[name]
        cells = [f"`{name}`", plugin.title, *(shown(getattr(plugin, key, "")) for key in extra)]
        yield f"| {' | '.join([*map(escaped, cells), escaped(plugin.reference)])} |"


def shown(value: Any) -> str:
    """A plug-in's attribute as people read it."""
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float) for v in value):
        return f"{value[0]:g} … {value[1]:g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, dict) or hasattr(value, "items"):
        return ", ".join(f"`{key}` = {setting!r}" for key, setting in value.items()) or "none"
    return str(value)


def schema_page() -> Iterator[str]:
    """Every key of a grid file."""
    yield "# Grid files\n"
    yield "A grid file is YAML. [Write a grid](../how-to/grids.md) shows one; these are all keys.\n"
    queue: list[tuple[str, type[BaseModel]]] = [("grid", GridSpec)]
    seen: set[type[BaseModel]] = set()
    while queue:
        name, section = queue.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield f"## `{name}`\n"
        yield f"{inspect.cleandoc(section.__doc__ or '').split('Attributes:')[0].strip()}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        meanings = attribute_docs(section)
        schemas = section.model_json_schema()["properties"]
        for key, field in section.model_fields.items():
            default = field.default
            if field.default_factory is not None:
                default = "(empty)"
            text = "required" if default is PydanticUndefined else f"`{default}`"
            kind = escaped(type_name(field.annotation)) + limits(schemas[key])
            meaning = escaped(meanings.get(key, ""))
            yield f"| `{key}` | {kind} | {text} | {meaning} |"
            queue += [(key, model) for model in models_in(field.annotation)]
        yield ""
    yield VALUES


def attribute_docs(section: type) -> dict[str, str]:
    """Meanings from a docstring's section ``Attributes``."""
    found: dict[str, str] = {}
    current = ""
    for line in inspect.cleandoc(section.__doc__ or "").partition("Attributes:")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            current, _, text = line.strip().partition(":")
            found[current] = text.strip()
        elif current and line.strip():
            found[current] += " " + line.strip()
    return found


def type_name(annotation: Any) -> str:
    """A type as people write it."""
    if isinstance(annotation, types.UnionType):
        return " or ".join(map(type_name, get_args(annotation)))
    origin = get_origin(annotation)
    if origin is None:
        return getattr(annotation, "__name__", str(annotation)).replace("NoneType", "null")
    inner = [type_name(argument) for argument in get_args(annotation)]
    if str(origin).endswith("Literal"):
        return " or ".join(f"`{argument}`" for argument in get_args(annotation))
    if origin in (list, tuple):
        return f"list of {inner[0]}"
    if origin is dict:
        return f"mapping to {inner[-1]}"
    return inner[0] if inner else str(annotation)


def limits(schema: dict[str, Any]) -> str:
    """Limits of a number, or of the numbers of a list, as ``, 1 to 10``; empty if it has none."""
    found: dict[str, Any] = {}
    for part in (schema, *schema.get("anyOf", []), schema.get("items", {})):
        found |= part
    if "exclusiveMinimum" in found:
        return f", above {found['exclusiveMinimum']}"
    if "minimum" not in found:
        return ""
    low, high = found["minimum"], found.get("maximum")
    return f", at least {low}" if high is None else f", {low} to {high:,}"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections of a grid file within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def results_page(folder: str) -> Iterator[str]:
    """The page of a results folder, with its links seen from the site."""
    text = (ROOT / "results" / folder / "README.md").read_text(encoding="utf-8")

    def moved(match: re.Match[str]) -> str:
        target = (ROOT / "results" / folder / match[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return f"](../{target.relative_to(ROOT / 'docs')}"
        if target.name == "README.md" and target.parent.name in RESULTS:
            return f"]({target.parent.name}.md"
        return f"]({REPOSITORY}/{target.relative_to(ROOT)}"

    yield re.sub(r"\]\((?!https?://|#)([^)#\s]+)", moved, text)


def leaderboard_page() -> Iterator[str]:
    """Leaderboards of the committed records, and how to add to them."""
    # Without side bars the tables show all their columns on a screen of 1280 px.
    yield "---\nhide: [navigation, toc]\n---\n"
    yield "# Leaderboard\n"
    yield (
        "One row per model, from the committed records: the mean over seeds with its 95 % "
        "interval. The best is bold; ⁼ marks models that the seeds cannot distinguish from the "
        "best (Welch's tests, Holm). "
        "Click a heading to sort. [Submit your own](../how-to/submit.md) by pull request.\n"
    )
    folders = [ROOT / "results/measured", *sorted((ROOT / "results").glob("submissions/*"))]
    for folder in folders:
        place = folder.relative_to(ROOT).as_posix()
        store = Store(folder)
        for name in sorted(path.stem for path in (folder / "grids").glob("*.yaml")):
            for board in leaderboards(store.grid(name), store.runs().values()):
                yield f"## {board.dataset}, L = {board.latent_dim}\n"
                yield '<div class="sortable" markdown>\n'
                yield board.frame.to_markdown(index=False)
                yield "\n</div>\n"
                yield f"[Records]({TREE}/{place}/records)\n"


def public_names() -> set[str]:
    """Functions and classes of the front door, without what Python and the module itself add."""
    return {
        name
        for name in dir(hgmvae_bench)
        if getattr(getattr(hgmvae_bench, name), "__module__", "").startswith("hgmvae_bench.")
    }


def api_page() -> Iterator[str]:
    """What `import hgmvae_bench` offers, and the contract of plug-ins."""
    yield "# Python API\n"
    yield (
        "`import hgmvae_bench as hb` takes milliseconds; each name is imported when it is first "
        "used. [Run a grid](../how-to/run.md#run-from-python) and "
        "[Tables and exports](../how-to/tables.md#read-results-in-python) show examples.\n"
    )
    listed = {name for names in API_SECTIONS.values() for name in names}
    if unlisted := public_names() - listed:
        raise ValueError(f"API_SECTIONS lacks {', '.join(sorted(unlisted))}")
    for title, names in API_SECTIONS.items():
        yield f"## {title}\n"
        for name in names:
            yield f"::: hgmvae_bench.{name}\n    options:\n      heading_level: 3\n"
    yield "## Contracts of plug-ins and grids\n"
    for module in PUBLIC_MODULES:
        yield f"::: {module}\n    options:\n      heading_level: 3\n"


for name in RESULTS:
    write(f"results/{name}.md", results_page(name))
write("results/leaderboard.md", leaderboard_page())
write("reference/cli.md", command_page())
write("reference/grid-file.md", schema_page())
write("reference/api.md", api_page())
write(
    "reference/model-registry.md",
    registry_page(
        "Registered models",
        "`hgmvae-bench list models` prints the same; [models](models.md) explains the settings.",
        MODELS,
        {"settings": "settings"},
    ),
)
write(
    "reference/dataset-registry.md",
    registry_page(
        "Registered datasets",
        "`hgmvae-bench list datasets` prints the same; [datasets](datasets.md) has the details.",
        DATASETS,
        {"image_size": "px", "channels": "channels", "reconstruction_loss": "loss"},
    ),
)
write(
    "reference/metric-registry.md",
    registry_page(
        "Registered metrics",
        "`hgmvae-bench list metrics` prints the same; [metrics](metrics.md) has the details.",
        METRICS,
        {"direction": "better", "range": "range", "needs": "needs", "cost": "cost"},
    ),
)
