"""Optional packages: whoever lacks one reads the line that installs it, never a traceback."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedsens._imports import EXTRAS, require
from fedsens.cli._common import named_errors
from fedsens.errors import ConfigurationError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
# What a distribution is called that brings a package of another name, itself or with others.
BRINGS = {
    "backpack": "backpack-for-pytorch",
    "datasets": "flwr-datasets",
    "dp_accounting": "dp-accounting",
    "flwr_datasets": "flwr-datasets",
    "pyarrow": "flwr-datasets",
    "ray": "flwr[simulation]",
    "scipy": "scikit-image",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def packages_of(extra):
    for each in PROJECT["optional-dependencies"][extra]:
        inner = re.fullmatch(r"fedsens\[(.+)\]", each)
        if inner:
            for other in inner[1].split(","):
                yield from packages_of(other)
        else:
            yield re.split("[<>=]", each)[0]


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_that_is_named_brings_the_package(package):
    assert BRINGS.get(package, package) in set(packages_of(EXTRAS[package]))


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_named_with_its_install_line(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf'pip install "fedsens\[{EXTRAS[package]}\]"'):
        require(package)


def test_a_command_that_imports_it_directly_says_so_too(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(typer.Exit), named_errors():
        import skimage.metrics  # noqa: F401
    assert 'pip install "fedsens[audit]"' in capsys.readouterr().err


def test_another_missing_module_is_not_mistaken_for_an_extra():
    with pytest.raises(ModuleNotFoundError), named_errors():
        import no_such_module_at_all  # noqa: F401


@pytest.mark.parametrize("package", ["ray", "matplotlib"])
def test_simulate_says_what_it_needs_before_anything_runs(package, monkeypatch, tmp_path):
    from fedsens.cli import app

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fedsens.simulation._figure", raising=False)
    root = Path(__file__).parents[1]
    result = CliRunner().invoke(app, ["simulate", str(root), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 1
    assert f'pip install "fedsens[{EXTRAS[package]}]"' in result.output.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_what_only_the_app_here_needs_is_not_in_the_extra_for_simulations():
    assert set(packages_of("simulation")) == {"matplotlib", "flwr[simulation]"}
