"""The house in figures: ``python -m tests.house``, which ``make check`` prints.

Lines of fedsens alone, without the sample apps, experiments and tests.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1] / "fedsens"
TESTS = ROOT.parent / "tests"
LONG = 50  # lines of a function's body


def modules() -> dict[str, ast.Module]:
    """Every module of fedsens, by its path within it, and its syntax tree."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def is_private(name: str) -> bool:
    """Whether a module is its package's own: an underscore before its name or a folder's."""
    return any(part.startswith("_") and part != "__init__.py" for part in name.split("/"))


def public_names(trees: dict[str, ast.Module]) -> list[tuple[str, str]]:
    """(module, name) of the functions and classes that others can import."""
    return [
        (module, node.name)
        for module, tree in trees.items()
        if not is_private(module)
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def same_names(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Name to modules, of the classes that share their name with another of fedsens."""
    found: dict[str, list[str]] = {}
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return {name: homes for name, homes in found.items() if len(homes) > 1}


def bodies(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Function, as ``module:name``, to the lines of its body, its docstring aside."""
    found = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first, *rest = node.body
                told = ast.get_docstring(node) is not None and rest
                begin = rest[0] if told else first
                found[f"{module}:{node.name}"] = (node.end_lineno or 0) - begin.lineno + 1
    return found


def without_test(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that no test file has the name of, in the folder of the same name or above."""
    tested = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    lacking = []
    for module in trees:
        folder, _, name = module.rpartition("/")
        test = f"test_{name.removeprefix('_')}"
        if (
            name not in {"__init__.py", "__main__.py"}
            and not {
                test,
                f"{folder}/{test}",
                f"test_{folder.split('/')[0]}.py",
            }
            & tested
        ):
            lacking.append(module)
    return lacking


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """Groups of modules that import each other while they are loaded."""
    edges = {module: _loads(tree, trees) for module, tree in trees.items()}
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen, queue = set[str](), list(edges[start])
        while queue:
            module = queue.pop()
            if module not in seen:
                seen.add(module)
                queue += edges[module]
        reach[start] = seen
    groups = {tuple(sorted(m for m in edges if m in reach[n] and n in reach[m])) for n in edges}
    return [list(group) for group in groups if group]


def _loads(tree: ast.Module, trees: dict[str, ast.Module]) -> list[str]:
    """Modules that a module imports when it is loaded."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [each for alias in node.names for each in _file(alias.name, trees)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a module of a package, or a name within a module
                inner = _file(f"{node.module}.{alias.name}", trees)
                found += inner or _file(node.module, trees)
    return found


def _file(module: str, trees: dict[str, ast.Module]) -> list[str]:
    """The file of a module of fedsens; nothing for others."""
    path = module.removeprefix("fedsens").removeprefix(".").replace(".", "/")
    names = f"{path}.py", f"{path}/__init__.py".removeprefix("/")
    return [name for name in names if name in trees] if module.startswith("fedsens") else []


def figures() -> dict[str, str]:
    """Label to figure."""
    trees = modules()
    rows = [row.strip() for module in trees for row in (ROOT / module).read_text().splitlines()]
    comments = sum(row.startswith("#") for row in rows)
    sizes, lacking = bodies(trees), without_test(trees)
    longest = max(sizes, key=lambda name: sizes[name])
    long = sum(size > LONG for size in sizes.values())
    return {
        "files": f"{len(trees)}",
        "lines": f"{len(rows):,}",
        "public names (in modules that are not private)": f"{len(public_names(trees))}",
        "lines of comments": f"{comments / len(rows):.1%}",
        "function bodies": f"{median(sizes.values()):.0f} lines (median), {long} above {LONG}, "
        f"the longest {sizes[longest]} ({longest})",
        "modules without a test file of their name": f"{len(lacking)}",
        "names of several classes": ", ".join(sorted(same_names(trees))) or "none",
        "circles of imports": f"{len(circles(trees))}",
    }


if __name__ == "__main__":
    sys.stdout.write("".join(f"{label}: {figure}\n" for label, figure in figures().items()))
