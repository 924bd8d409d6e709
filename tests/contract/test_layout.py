"""Guards of the repository's layout and of the direction in which imports point."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from replaybench.paths import BASELINES_DIR, PACKAGE_DIR, ROOT

SOURCES = sorted(PACKAGE_DIR.rglob("*.py"))
# The word is too common to be a method's name wherever it stands.
METHODS = sorted(path.stem for path in BASELINES_DIR.glob("*.py") if path.stem != "zero")
MATHS_MAY_IMPORT = {"torch", "numpy", "replaybench.errors", "replaybench.maths"} | sys.stdlib_module_names


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE_DIR.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for path in SOURCES}


@lru_cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(tree: ast.Module, *, at_import_time: bool) -> set[str]:
    """The modules that a file names in imports, as `package.module` and `package.module.attribute`.

    With `at_import_time` only those that run when the file is imported, without its functions' own.
    """
    names: set[str] = set()
    for node in _statements(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


def reachable_from(path: Path) -> set[str]:
    """Everything that a file imports anywhere, and what those modules of the package import in turn when imported."""
    found = imports_of(parse(path), at_import_time=False)
    waiting = list(found)
    while waiting:
        module = PATHS.get(waiting.pop())
        fresh = imports_of(parse(module), at_import_time=True) - found if module else set()
        found |= fresh
        waiting += fresh
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def existing(*patterns: str) -> list[Path]:
    """The files of the package that match, for guards over parts of it."""
    return sorted(path for pattern in patterns for path in PACKAGE_DIR.glob(pattern))


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE_DIR))


@pytest.mark.parametrize("folder", ["harness", "baselines", "datasets", "reports"])
def test_top_level_folders_are_not_packages(folder: str) -> None:
    """A folder with an __init__.py at depth one would shadow a library of that name."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_datasets_is_the_installed_library_also_inside_the_checkout() -> None:
    """With the checkout's root first on the path, `import datasets` still finds Hugging Face's package."""
    spec = PathFinder.find_spec("datasets", [str(ROOT), *sys.path])
    assert spec is not None
    assert spec.origin is not None
    assert "site-packages" in Path(spec.origin).parts


@pytest.mark.parametrize("path", existing("maths/*.py"), ids=relative)
def test_maths_imports_only_tensors_and_errors(path: Path) -> None:
    """The maths modules know torch, numpy, the standard library, the package's errors and each other."""
    imported = imports_of(parse(path), at_import_time=False)
    strangers = {name for name in imported if not any(is_within(name, allowed) for allowed in MATHS_MAY_IMPORT)}
    assert not strangers


@pytest.mark.parametrize("path", existing("analysis/*.py"), ids=relative)
def test_analysis_reads_tables_only(path: Path) -> None:
    """No analysis module reaches torch, a policy or a baseline, directly or through another module."""
    forbidden = ("torch", "replaybench.policy", "replaybench.baseline")
    assert not {name for name in reachable_from(path) if any(is_within(name, package) for package in forbidden)}


@pytest.mark.parametrize("path", existing("train.py", "probe.py"), ids=relative)
def test_training_does_not_draw(path: Path) -> None:
    """Neither training nor probing reaches a plotting library."""
    forbidden = ("matplotlib", "seaborn")
    assert not {name for name in reachable_from(path) if any(is_within(name, package) for package in forbidden)}


def names_in(tree: ast.Module) -> set[str]:
    """Every identifier and every string of a file, docstrings and comments left out."""
    found: set[str] = set()
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in documentation:
                found.add(node.value)
            continue
        for _, value in ast.iter_fields(node):
            if isinstance(value, str):
                found.add(value)
            elif isinstance(value, list):
                found |= {item for item in value if isinstance(item, str)}
    return found


def methods_named_in(tree: ast.Module, methods: list[str]) -> set[str]:
    """The methods whose name stands, as a whole word, in a string or as an identifier."""
    return {method for method in methods for name in names_in(tree) if re.search(rf"\b{method}\b", name)}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_harness_names_no_method(path: Path) -> None:
    """No file of the harness knows a baseline by name; adding one touches its own file only."""
    assert not methods_named_in(parse(path), METHODS)


def test_the_name_guard_sees_strings_and_identifiers_but_no_prose() -> None:
    """The guard above finds planted names of every kind, and passes comments, docstrings and longer words."""
    planted = [
        'x = "gipo"',
        'x = f"run {y} with gipo,ppo_clip"',
        "gipo = 1",
        "f(gipo=1)",
        "def gipo(): ...",
        "def f(gipo): ...",
        "from baselines import gipo",
        "import baselines.gipo as g",
        "x.gipo",
        "class gipo: ...",
        "global gipo",
    ]
    for source in planted:
        assert methods_named_in(ast.parse(source), ["gipo"]) == {"gipo"}, source
    harmless = ['"""gipo"""', "# gipo", "def f():\n    '''gipo'''", "gipon = 1", 'x = "gipo_like"']
    for source in harmless:
        assert not methods_named_in(ast.parse(source), ["gipo"]), source


def test_the_import_walk_sees_nested_imports_and_skips_lazy_ones() -> None:
    """An import in a function counts for the file itself, but not for those who import the file."""
    tree = ast.parse(
        "import a.b\nfrom c import d\nif X:\n    import e\nif TYPE_CHECKING:\n    import t\ndef f():\n    import lazy\n"
    )
    assert imports_of(tree, at_import_time=True) == {"a.b", "c", "c.d", "e"}
    assert imports_of(tree, at_import_time=False) == {"a.b", "c", "c.d", "e", "t", "lazy"}


def test_the_import_walk_follows_modules_of_the_package() -> None:
    """Baselines load through the maths: from baseline.py the walk reaches what maths/shapes.py imports."""
    assert "replaybench.maths.shapes" in reachable_from(PACKAGE_DIR / "baseline.py")
    assert "torch" in reachable_from(PACKAGE_DIR / "baseline.py")
    assert "replaybench.errors.ContractError" in reachable_from(PACKAGE_DIR / "baseline.py")
