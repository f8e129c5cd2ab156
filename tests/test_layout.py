"""The house as its imports draw it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hgmvae_bench": ROOT / "benchmark",
    "hgmvae": ROOT / "models",
    "vae_baselines": ROOT / "baselines",
}


def imported(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """Imports wherever they stand, those for types alone aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield node
        yield from imported(node)


def test_imports_run_one_way() -> None:
    rooms = {}
    for package, folder in PACKAGES.items():
        for path in (folder / package).rglob("*.py"):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            rooms[name.removesuffix(".__init__")] = path
    assert len(rooms) > 100
    uses = {}
    for room, path in rooms.items():
        names = {
            (node.module, f"{node.module}.{alias.name}")
            for node in imported(ast.parse(path.read_text()))
            for alias in node.names
        }
        uses[room] = {inner if inner in rooms else outer for outer, inner in names} & rooms.keys()
    TopologicalSorter(uses).prepare()  # raises CycleError with the rooms of a circle


def test_models_and_baselines_know_nothing_of_the_suite() -> None:
    for package in ("hgmvae", "vae_baselines"):
        for path in (PACKAGES[package] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert not (node.module or "").startswith("hgmvae_bench"), path
