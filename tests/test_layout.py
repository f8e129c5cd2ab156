"""Architecture: permitted imports, and names with a single meaning."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hgmvae_bench": ROOT / "benchmark",
    "hgmvae": ROOT / "models",
    "vae_baselines": ROOT / "baselines",
}

# A package imports only from those before it; packages of one group do not import each other.
ORDER = (
    {"utils"},
    {"plugins"},
    {"data"},
    {"grid"},
    {"training", "storage"},
    {"evaluation"},
    {"analysis"},
    {"execution"},
    {"cli"},
)


def modules(package: str) -> dict[str, ast.Module]:
    """Syntax trees of a package's modules by dotted name."""
    folder = PACKAGES[package]
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): (
            ast.parse(path.read_text(encoding="utf-8"))
        )
        for path in (folder / package).rglob("*.py")
    }


def imports(tree: ast.AST, *, for_types: bool = True) -> Iterator[tuple[str, str]]:
    """Imports at any depth; without ``for_types`` not those under TYPE_CHECKING.

    Yields:
        The imported module, and the module followed by the name that is imported from it, if any.
    """
    for node in ast.iter_child_nodes(tree):
        only_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if only_types and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            yield from ((module, f"{module}.{alias.name}") for alias in node.names)
        yield from imports(node, for_types=for_types)


def test_both_forms_of_imports_are_found() -> None:
    tree = ast.parse("import a.b, c\ndef f():\n    from d import e\nif TYPE_CHECKING: import g")
    found = [("a.b", "a.b"), ("c", "c"), ("d", "d.e")]
    assert list(imports(tree, for_types=False)) == found
    assert list(imports(tree)) == [*found, ("g", "g")]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_is_relative(package: str) -> None:
    relative = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_no_module_imports_itself_through_others() -> None:
    trees = {name: tree for package in PACKAGES for name, tree in modules(package).items()}
    assert len(trees) > 100
    uses = {}
    for name, tree in trees.items():
        found = imports(tree, for_types=False)
        uses[name] = {inner if inner in trees else outer for outer, inner in found} & trees.keys()
    TopologicalSorter(uses).prepare()  # raises CycleError, which names the modules of the cycle


def test_packages_import_only_from_those_before_them() -> None:
    rank = {name: i for i, group in enumerate(ORDER) for name in group}
    wrong = []
    for name, tree in modules("hgmvae_bench").items():
        if name.count(".") == 0 or name == "hgmvae_bench.__main__":
            continue  # the front door imports everything, when it is asked to
        own = name.split(".")[1]
        for module, _ in imports(tree):
            parts = module.split(".")
            if parts[0] != "hgmvae_bench" or parts[1:2] == [own]:
                continue
            if len(parts) == 1 or rank[parts[1]] >= rank[own]:
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_the_top_level_has_packages_not_modules() -> None:
    top = {path.name for path in (PACKAGES["hgmvae_bench"] / "hgmvae_bench").glob("*.py")}
    assert top == {"__init__.py", "__main__.py"}


def test_a_class_name_means_one_thing() -> None:
    names = Counter(
        node.name
        for tree in modules("hgmvae_bench").values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines that a function's code stands on, without its docstring, comments and blank lines."""
    body = function.body if ast.get_docstring(function) is None else function.body[1:]
    found = {function.lineno}
    for statement in (function.args, *body):
        for node in ast.walk(statement):
            if hasattr(node, "lineno"):
                found |= {node.lineno, node.end_lineno}
    return len(found)


def nesting(node: ast.AST) -> int:
    """Levels of blocks within a function; an ``elif`` is no level of its own."""
    levels = [0]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        is_block = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match)
        levels.append(nesting(child) + (is_block and not is_elif))
    return max(levels)


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_have_at_most_50_lines_of_code_and_four_levels_of_blocks(package: str) -> None:
    too_large = [
        f"{name}.{function.name}: {code_lines(function)} lines, {nesting(function)} levels"
        for name, tree in modules(package).items()
        for function in functions(tree)
        if code_lines(function) > 50 or nesting(function) > 4
    ]
    assert too_large == []


@pytest.mark.parametrize("package", ["hgmvae", "vae_baselines"])
def test_models_and_baselines_import_nothing_of_the_suite(package: str) -> None:
    for name, tree in modules(package).items():
        for module, _ in imports(tree):
            assert not module.startswith("hgmvae_bench"), name


def test_hgmvae_imports_nothing_of_the_baselines() -> None:
    for name, tree in modules("hgmvae").items():
        for module, _ in imports(tree):
            assert not module.startswith("vae_baselines"), name


def test_tox_names_only_test_files_that_exist() -> None:
    paths = re.findall(r"\btests/[\w/.]+", (ROOT / "tox.ini").read_text(encoding="utf-8"))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_test_on_the_page_about_reliability_exists() -> None:
    """The page names files, each followed by the first words of its tests."""
    text = (ROOT / "docs" / "explanation" / "reliability.md").read_text(encoding="utf-8")
    missing, n_tests, sources = [], 0, [""]
    for name, ending in re.findall(r"`(test_\w+)(\.py|…|)`", text):
        if ending == ".py":
            paths = (ROOT / "tests").rglob(f"{name}.py")
            sources = [path.read_text(encoding="utf-8") for path in paths]
            exists = bool(sources)
        else:
            n_tests += 1
            function = f"def {name}" if ending else f"def {name}("
            exists = any(function in source for source in sources)
        if not exists:
            missing.append(name)
    assert missing == []
    assert n_tests > 30
