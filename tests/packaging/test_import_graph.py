"""Which package may import which: the remote code nothing but itself, the others in one direction.

Read from the syntax trees, so that an import within a function counts as one at the top of a file.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from checkpoint_files import DYNAMIC_VLM_FILES, MEDIA_FILES, MODEL_FILES, ROOT

PACKAGE_ONLY = {"__init__", "convert_weights", "moved_names"}  # root modules that travel with no checkpoint
REMOTE_CODE = {path.stem for path in ROOT.glob("*.py")} - PACKAGE_ONLY

# package -> the packages that it may import, beside the remote code and itself
MAY_IMPORT = {
    "reporting": set(),
    "conversion": {"hub", "reporting"},  # hub: a converted folder gets its model card
    "hub": {"conversion", "reporting"},  # conversion: a folder is checked as a source of a conversion is
    "training": {"conversion", "evaluation", "hub", "reporting"},  # evaluation: the client of an endpoint
    "benchmarks": {"conversion", "evaluation", "reporting", "training"},
    "evaluation": {"conversion", "reporting"},
    "tiny": {"conversion", "evaluation", "hub", "reporting", "training"},
    "assets": {"tiny"},
    "demo": {"assets"},
    "serving": {"conversion"},
    "cli": {"benchmarks", "conversion", "evaluation", "hub", "reporting", "serving", "training", "tiny"},
}
ENTRY_POINTS = {"cli": {"convert_weights"}}  # who else may import what only people call


def modules() -> dict[str, Path]:
    """Name within `pvc` -> file, for the root and the packages (not tests, examples, docs)."""
    files = [*ROOT.glob("*.py"), *(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """Modules of this repository that a module imports, and whether it does so when it is imported itself."""
    tree = ast.parse(MODULES[name].read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }

    return tuple(
        (target, id(node) not in inner) for node in ast.walk(tree) for target in imported_names(node, name)
    )


def imported_names(node: ast.AST, importer: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        source = absolute(node, importer)
        # `from pvc.tiny import tokenizer` imports a module, `from pvc.tiny.tokenizer import train` does not
        names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
        names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    else:
        names = []

    for full in names:
        inside = full.removeprefix("pvc.")
        if inside != full and inside in MODULES:
            yield inside


def absolute(node: ast.ImportFrom, importer: str) -> str:
    """The module that an import names, from `pvc` on where it is relative."""
    if not node.level:
        return node.module or ""

    is_package = MODULES[importer].name == "__init__.py"
    parts = [] if importer == "__init__" else importer.split(".")
    parents = parts[: len(parts) - node.level + is_package] if parts else []
    return ".".join(["pvc", *parents, *([node.module] if node.module else [])])


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def package_of(name: str) -> str:
    package = name.partition(".")[0]
    return package if package in MAY_IMPORT else ""


@pytest.mark.parametrize("name", sorted(REMOTE_CODE))
def test_remote_code_imports_its_siblings_alone_and_by_relative_name(name):
    tree = ast.parse(MODULES[name].read_text())
    from_imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    siblings = {node.module for node in from_imports if node.level}

    assert all(node.level <= 1 for node in from_imports)
    assert siblings <= REMOTE_CODE  # a bare `from . import name` gives None, which is no sibling
    absolute_names = {target for target, _ in imports(name)} - siblings
    assert not absolute_names


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_imports_the_packages_below_it_alone(package):
    allowed = {"", package} | MAY_IMPORT[package]
    wrong = {
        f"{name} imports {target}"
        for name in MODULES
        if package_of(name) == package
        for target, _ in imports(name)
        if package_of(target) not in allowed
    }
    assert not wrong


@pytest.mark.parametrize("package", ["tiny", "cli", "serving"])
def test_nobody_imports_what_stands_on_top(package):
    importers_of = {"tiny": {"cli", "assets"}, "serving": {"cli"}}
    allowed = {package} | importers_of.get(package, set())
    importers = {
        name
        for name in MODULES
        if package_of(name) not in allowed
        for target, _ in imports(name)
        if target.partition(".")[0] == package
    }
    assert importers <= ENTRY_POINTS.get(package, set())


def test_no_modules_import_each_other_in_a_circle():
    at_import = {
        name: {target for target, at_once in imports(name) if at_once and target != name} for name in MODULES
    }
    # that a package is imported before its modules is no circle: its __init__ may import them
    for name, targets in at_import.items():
        at_import[name] = {target for target in targets if not name.startswith(f"{target}.")}
    in_order = list(TopologicalSorter(at_import).static_order())  # CycleError, which names the circle
    assert set(in_order) >= set(MODULES)


def test_only_entry_points_are_left_out_of_a_checkpoint():
    travelling = {Path(name).stem for name in [*MODEL_FILES, *DYNAMIC_VLM_FILES, *MEDIA_FILES]}
    assert travelling <= REMOTE_CODE
    importers = {name for name in MODULES for target, _ in imports(name) if target == "convert_weights"}
    assert not importers


def test_every_package_has_its_line_in_the_table():
    folders = {path.parent.name for path in ROOT.glob("[!.]*/*.py")}
    assert folders - {"build", "docs", "examples", "tests"} == set(MAY_IMPORT)


def test_imports_are_seen_wherever_they_stand():
    source = (
        "def f():\n    import pvc.tiny.tokenizer\n    from pvc.cli import app\n    import_module('pvc.tiny')"
    )
    found = {n for node in ast.walk(ast.parse(source)) for n in imported_names(node, "training.run")}
    assert found == {"tiny.tokenizer", "cli", "tiny"}

    relative = ast.parse("from .values import a\nfrom ..tiny import tokenizer\nfrom . import trainer")
    found = {n for node in ast.walk(relative) for n in imported_names(node, "training.run")}
    assert found == {"training.values", "tiny", "tiny.tokenizer", "training", "training.trainer"}
