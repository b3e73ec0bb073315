"""Extensions: registered once, found by name, by module and by entry point."""

import sys
from importlib.metadata import EntryPoint

import pytest
from typer.testing import CliRunner

from fedsens import _extensions as extensions
from fedsens._extensions import Registry, load_extensions
from fedsens.cli import app
from fedsens.errors import ConfigurationError, DataError

MODULE = """
from fedsens.data import RawImages, register_reader
import numpy as np

@register_reader("a square", claims=lambda source: source == "square")
def read(source):
    return RawImages(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)
"""


@pytest.fixture
def shapes():
    registry = Registry("shape", "fedsens.shapes")
    registry.register("circle")(lambda: "round")
    return registry


@pytest.fixture
def announced(monkeypatch):
    def announce(value):
        points = {"fedsens.shapes": [EntryPoint("extra", value, "fedsens.shapes")]}
        monkeypatch.setattr(extensions, "entry_points", lambda group: points.get(group, []))

    return announce


def test_an_entry_is_found_by_name_and_returned_unchanged(shapes):
    def square():
        return "square"

    assert shapes.register("square")(square) is square
    assert shapes["square"] is square
    assert list(shapes) == ["circle", "square"]
    assert [*shapes.values()][1] is square


@pytest.mark.parametrize("name", ["cirkle", "", "square", None, 3, ["circle"]])
def test_an_unknown_name_lists_the_known_ones(shapes, name):
    with pytest.raises(ConfigurationError, match=r"shape among circle, got .*--import") as caught:
        shapes[name]
    assert ("nearest: circle" in str(caught.value)) == (name == "cirkle")


def test_a_taken_name_is_refused_with_the_registrys_own_error():
    registry = Registry("format", error=DataError)
    registry.add("a", 1)
    with pytest.raises(DataError, match="expected a new name for a format, got 'a'"):
        registry.add("a", 2)


def test_a_module_that_is_loaded_once_more_replaces_its_own_entry(shapes):
    def loaded(value):
        def oval():
            return value

        return oval

    first, again = loaded(1), loaded(2)
    shapes.register("oval")(first)
    shapes.register("oval")(again)
    assert shapes["oval"] is again
    with pytest.raises(ConfigurationError, match="which exists"):
        shapes.register("oval")(lambda: 3)


def test_installed_packages_are_asked_when_a_name_is_looked_up(shapes, announced, monkeypatch):
    module = type(sys)("announced_shapes")
    monkeypatch.setitem(sys.modules, "announced_shapes", module)
    announced("announced_shapes:make")
    module.make = None
    assert list(shapes) == ["circle"]


@pytest.mark.parametrize("value", ["no_such_module", "json:nothing"])
def test_an_entry_point_that_does_not_load_is_named(shapes, announced, value):
    announced(value)
    with pytest.raises(ConfigurationError, match=f"extra = {value} of fedsens.shapes") as told:
        shapes["square"]
    assert " '" not in str(told.value)  # what the import says, perhaps with folders, is a note
    assert "'no_such_module'" in told.value.with_notes or "'nothing'" in told.value.with_notes


def test_a_known_name_does_not_ask_other_packages(shapes, announced):
    announced("no_such_module")
    assert shapes["circle"]() == "round"


def test_all_modules_that_cannot_be_imported_are_named():
    load_extensions(["json", " ", ""])
    with pytest.raises(ConfigurationError) as caught:
        load_extensions(["json", "no_such", "nor.this", ".relative"])
    for name in ("no_such", "nor.this", ".relative"):
        assert name in str(caught.value)


def test_a_module_with_a_mistake_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text("def (:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"mistaken \(SyntaxError"):
        load_extensions(["mistaken"])


@pytest.mark.parametrize("group", extensions.GROUPS)
def test_what_is_announced_of_every_kind_is_loaded_before_modules(group, monkeypatch):
    def points(group, wanted=group):
        return [EntryPoint("extra", "no_such_module", group)] if group == wanted else []

    monkeypatch.setattr(extensions, "entry_points", points)
    with pytest.raises(ConfigurationError, match=f"no_such_module of {group} to load"):
        load_extensions([])
    result = CliRunner().invoke(app, ["audit", "--policy", "random"])
    assert result.exit_code == 1
    assert f"of {group} to load" in result.output.replace("\n", " ")


@pytest.mark.parametrize("command", ["map", "audit"])
def test_the_command_line_imports_a_module_of_the_current_folder(command, tmp_path, monkeypatch):
    """The reader makes the command read further than the name of its data."""
    name = f"square_reader_{command}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("square", f"square-{command}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = {
        "map": ["--model", "torch.nn:Flatten", "--out", "m.safetensors"],
        "audit": ["--policy", "no-such-policy"],
    }[command]
    arguments = [command, *arguments, "--data", f"square-{command}"]
    assert "expected a data set" in CliRunner().invoke(app, arguments).output.replace("\n", " ")
    result = CliRunner().invoke(app, [*arguments, "--import", name])
    assert "expected a data set" not in result.output.replace("\n", " ")
    assert result.exit_code == 1


def test_a_wrong_import_is_one_sentence():
    result = CliRunner().invoke(app, ["audit", "--import", "no_such_module"])
    assert result.exit_code == 1
    assert "no_such_module" in result.output
    assert "Traceback" not in result.output
