"""The house in figures: ``python -m tests.house``, which ``make check`` prints.

Lines of fedsens alone, without the sample apps, experiments and tests.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1] / "fedsens"
TESTS = ROOT.parent / "tests"
LONG = 50  # lines of a function's body
TESTED_BY = {
    # Half of a protocol cannot be tested without the other: these have whole rounds.
    "flower/test_one_time_keys.py": (
        "flower/_client.py",
        "flower/_client_keys.py",
        "flower/_client_uploads.py",
        "flower/_uploads.py",
    ),
    "flower/test_hostile_server.py": ("flower/_client_masks.py", "flower/_masks.py"),
    "flower/test_hostile_answers.py": ("flower/_updates.py",),
    "flower/test_laws.py": ("flower/_maps.py", "flower/_strategy.py"),
    "flower/test_resume.py": ("flower/_checkpoints.py",),
    "flower/test_opens.py": ("flower/_groups.py", "flower/_inner.py"),
    "flower/test_rotation.py": ("flower/_state.py",),
    "flower/test_grid.py": ("flower/_local_grid.py",),
    # One file of laws for several ways to one number.
    "audit/test_attacks.py": ("audit/_analytic.py", "audit/_learned.py", "audit/_matching.py"),
    "audit/test_distance.py": ("audit/_spectrum.py",),
    "sensitivity/test_engines.py": ("sensitivity/_reference.py", "sensitivity/_runner.py"),
    "sensitivity/test_compute.py": ("sensitivity/_plan.py", "sensitivity/_task.py"),
    "sensitivity/test_jacobians.py": ("sensitivity/_layerwise.py",),
    "sensitivity/test_standard_losses.py": ("sensitivity/_targets.py",),
    "sensitivity/capture/test_engine.py": (
        "sensitivity/capture/_accumulators.py",
        "sensitivity/capture/_backward.py",
        "sensitivity/capture/_recorder.py",
    ),
    "sensitivity/capture/test_registry.py": ("sensitivity/_tolerance.py",),
    "sensitivity/capture/test_rules.py": ("sensitivity/capture/_convolution.py",),
    # What a command does is tested by the command.
    "cli/test_audit.py": (
        "audit/_figure.py",
        "audit/_record.py",
        "audit/_report.py",
        "audit/_study.py",
        "audit/_verdict.py",
        "cli/_audit_run.py",
    ),
    "audit/test_recommend.py": ("cli/_recommend.py",),
    "bench/test_round.py": ("bench/_models.py", "cli/_bench.py"),
    "cli/test_commands.py": ("cli/_common.py",),
    "cli/test_map.py": ("mapping/_job.py",),
    "mapping/test_layers.py": ("mapping/_figure.py",),
    "simulation/test_summary.py": ("simulation/_figure.py", "simulation/_screen.py"),
    "test_house.py": ("errors.py",),
}  # test file to the modules that it tests although their names differ


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of fedsens, by its path within it, and its syntax tree."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def is_private(name: str) -> bool:
    """Whether a module is its package's own: an underscore before its name or a folder's."""
    return any(part.startswith("_") and part != "__init__.py" for part in name.split("/"))


def public_names(trees: dict[str, ast.Module]) -> set[str]:
    """Functions and classes that others can import: what modules that are not private offer."""
    defined, offered = set[str](), set[str]()
    for module, tree in trees.items():
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= own
        if not is_private(module):
            offered |= _offered(tree) or {name for name in own if not name.startswith("_")}
    return offered & defined


def _offered(tree: ast.Module) -> set[str]:
    """The names in ``__all__``."""
    return {
        constant.value
        for node in tree.body
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets)
        for constant in ast.walk(node.value)
        if isinstance(constant, ast.Constant)
    }


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
    """Modules that neither a test file of their name nor one of :data:`TESTED_BY` tests."""
    tested = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    elsewhere = {module for modules in TESTED_BY.values() for module in modules}
    lacking = []
    for module in trees:
        folder, _, name = module.rpartition("/")
        test = f"test_{name.removeprefix('_')}"
        if (
            name not in {"__init__.py", "__main__.py"}
            and module not in elsewhere
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
    beside = sum("  # " in row and not row.startswith("#") for row in rows)
    sizes, lacking = bodies(trees), without_test(trees)
    longest = max(sizes, key=lambda name: sizes[name])
    long = sum(size > LONG for size in sizes.values())
    return {
        "files": f"{len(trees)}",
        "lines": f"{len(rows):,}",
        "public functions and classes": f"{len(public_names(trees))}",
        "comments": f"{comments / len(rows):.1%} of the lines, and beside {beside / len(rows):.1%}",
        "function bodies": f"{median(sizes.values()):.0f} lines (median), {long} above {LONG}, "
        f"the longest {sizes[longest]} ({longest})",
        "modules without a test file": f"{len(lacking)}, and "
        f"{sum(map(len, TESTED_BY.values()))} that files of other names test",
        "names of several classes": ", ".join(sorted(same_names(trees))) or "none",
        "circles of imports": f"{len(circles(trees))}",
    }


if __name__ == "__main__":
    sys.stdout.write("".join(f"{label}: {figure}\n" for label, figure in figures().items()))
