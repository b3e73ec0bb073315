"""The house rules: who may import whom, what is exported, what must never be written."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedsens
from fedsens import errors
from tests import house

ROOT = Path(fedsens.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVELS = {
    "errors": 0,
    "_extensions": 1,
    "_imports": 1,
    "_files": 1,
    "layout": 1,
    "_options": 1,
    "_tables": 1,
    "_topk": 1,
    "data": 2,
    "sensitivity": 2,
    "mask": 2,
    "crypto": 2,
    "remainder": 3,
    "config": 4,
    "protocol": 5,
    "keys": 6,
    "flower": 7,
    "bench": 8,
    "simulation": 8,
    "audit": 8,
    "mapping": 8,
    "planning": 9,
    "reporting": 9,
    "cli": 10,
}
ALLOWED = {
    "tenseal": {"crypto"},
    "flwr": {"flower", "bench", "simulation", "cli"},
    "backpack": set(),
    "cryptography": {"keys"},
    "opacus": set(),
    "typer": {"cli", "mapping"},
}
LIGHT = {
    "errors",
    "_files",
    "_imports",
    "layout",
    "_options",
    "_topk",
    "mask",
    "crypto",
    "remainder",
    "config",
    "protocol",
    "keys",
}  # start without torch


def home_of(path):
    """The package or top-level module of fedsens that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def imports_in(nodes, at_load):
    """Names of the modules that some statements import; only when loaded, or anywhere."""
    for node in nodes:
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            if node.module == "fedsens":
                yield from (f"fedsens.{alias.name}" for alias in node.names)
        elif not (at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports_in(ast.iter_child_nodes(node), at_load)


def imports(path, at_load=False):
    return set(imports_in(ast.parse(path.read_text()).body, at_load))


def external(path, at_load=False):
    return {name.partition(".")[0] for name in imports(path, at_load)}


def by_name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_dependencies_point_downwards(path):
    home = home_of(path)
    if home == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "fedsens" or len(parts) == 1 or parts[1] == home:
            continue
        if parts[1] not in LEVELS:  # a name of the public surface, which imports everything
            pytest.fail(f"{by_name(path)} imports {name}; import it from its own module")
        assert LEVELS[parts[1]] < LEVELS[home], f"{by_name(path)} imports {name}"


def test_no_modules_import_each_other():
    assert house.circles(house.modules()) == []


def test_no_function_is_long():
    sizes = house.bodies(house.modules())
    assert [name for name, size in sizes.items() if size > house.LONG] == []


def test_every_module_has_its_test_file():
    trees = house.modules()
    assert house.without_test(trees) == []
    listed = [module for modules in house.TESTED_BY.values() for module in modules]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(trees)
    assert all((house.TESTS / test).is_file() for test in house.TESTED_BY)


def test_no_two_classes_have_one_name():
    assert house.same_names(house.modules()) == {}


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_private_modules_are_imported_by_their_own_package_only(path):
    for name in imports(path):
        parts = name.split(".")
        private = parts[0] == "fedsens" and any(part.startswith("_") for part in parts[2:])
        assert not private or parts[1] == home_of(path), f"{by_name(path)} imports {name}"


CLIENTS_HALF = re.compile(r"flower/_(mod|client\w*)\.py")


@pytest.mark.parametrize("path", sorted((ROOT / "flower").glob("*.py")), ids=by_name)
def test_only_the_clients_half_imports_what_clients_keep(path):
    kept = re.compile(r"fedsens\.(keys|flower\._(client|mod))")
    names = set(filter(kept.match, imports(path)))
    assert not names or CLIENTS_HALF.fullmatch(by_name(path)), names


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_each_library_has_its_own_importer(path):
    for library, homes in ALLOWED.items():
        assert library not in external(path) or home_of(path) in homes


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_torch_is_not_loaded_where_it_is_not_needed(path):
    assert home_of(path) not in LIGHT | {"__init__"} or "torch" not in external(path, at_load=True)


def test_the_sensitivity_package_uses_torch_and_numpy_only():
    outside = {"fedsens", "torch", "numpy"} | set(sys.stdlib_module_names)
    for path in ROOT.glob("sensitivity/*.py"):
        assert external(path) <= outside, by_name(path)


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_nothing_forbidden_is_written(path):
    assert not external(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec"}, f"line {node.lineno}"


def test_few_names_are_public():
    assert len(house.public_names(house.modules())) <= 260


def test_the_public_surface_is_sorted_complete_and_importable():
    assert fedsens.__all__ == sorted(fedsens.__all__)
    assert dir(fedsens) == fedsens.__all__


LAZY = [path for path in FILES if "attach(__name__" in path.read_text()]


@pytest.mark.parametrize("path", LAZY, ids=by_name)
def test_what_is_imported_when_used_is_what_type_checkers_see(path):
    package = importlib.import_module(".".join(("fedsens", *path.relative_to(ROOT).parts[:-1])))
    blocks = filter(is_type_checking, ast.parse(path.read_text()).body)
    seen = {alias.name for block in blocks for node in block.body for alias in node.names}
    assert seen <= set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_the_architecture_page_names_what_exists():
    page = (ROOT.parent / "docs/explanation/architecture.md").read_text()
    found = re.findall(r"`(?:fedsens/)?((?!tests)[a-z]+/_?\w+)\.py(?::\s+(\w+))?", page)
    assert len(found) > 20
    for module, name in found:
        tree = ast.parse((ROOT / f"{module}.py").read_text())
        names = {getattr(node, "name", None) for node in ast.walk(tree)}
        assert not name or name in names, f"{module}.py has no {name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pickle_everything'"):
        _ = fedsens.pickle_everything


def test_every_exception_is_in_the_one_tree():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception")):
                assert path.name == "errors.py", f"{node.name} is defined in {by_name(path)}"


def test_the_error_tree_is_drawn_as_it_is():
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    assert all(issubclass(error, errors.FedSensError) for error in classes.values())
    parents, drawn = [], {}
    for line in errors.__doc__.splitlines():
        word = line.strip("│├└─ ").split(" ")[0]
        if word.endswith("Error"):
            depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
            parents[depth - 1 :] = [word]
            drawn[word] = parents[-2] if len(parents) > 1 else "Exception"
    assert drawn == {name: error.__base__.__name__ for name, error in classes.items()}


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("fedsens", {"torch", "flwr", "tenseal", "numpy"}),
        ("fedsens.crypto", {"torch", "flwr", "tenseal"}),
        ("fedsens.mask", {"torch", "flwr", "tenseal"}),
        ("fedsens.remainder", {"torch", "flwr", "tenseal"}),
        ("fedsens.protocol", {"torch", "flwr", "tenseal"}),
        ("fedsens.config", {"torch", "flwr"}),
        ("fedsens.keys", {"torch", "flwr", "tenseal"}),
        ("fedsens.flower", {"torch"}),
        ("fedsens.sensitivity", {"flwr", "tenseal"}),
    ],
)
def test_a_module_starts_without_what_it_does_not_need(module, unloaded):
    code = f"import sys, {module}; print(*({unloaded!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
