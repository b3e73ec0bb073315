"""The apps for Flower's hub: what is packed is complete, by the strict rules, and runs."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fedsens

ROOT = Path(__file__).parents[2]
RUN = """
import importlib, sys, tomllib
from pathlib import Path
from flwr.app import Context, RecordDict
from flwr.common.config import flatten_dict
from fedsens.flower import LocalGrid
sys.path.insert(0, ".")
app = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["flwr"]["app"]
config = {**flatten_dict(app["config"]), "num-server-rounds": 1, "output-dir": "out"}
parts = {n: importlib.import_module(t.split(":")[0]).app for n, t in app["components"].items()}
node = {"fedsens-state-dir": "state"}
grid = LocalGrid(parts["clientapp"], 3, node_config=node, run_config=config)
parts["serverapp"](grid, Context(1, 1, {}, RecordDict(), config))
"""


def unpacked(name, folder):
    """An app, built by Flower and unpacked."""
    flwr = Path(sys.executable).with_name("flwr")
    command = [flwr, "build", "--app", ROOT / "experiments" / name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    (fab,) = folder.glob("*.fab")
    with zipfile.ZipFile(fab) as archive:
        archive.extractall(folder / "app")
    return folder / "app"


@pytest.mark.parametrize("name", ["hub", "lora"])
def test_flower_packs_it_by_the_strict_rules(name, tmp_path):
    folder = unpacked(name, tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    app = project["tool"]["flwr"]["app"]
    assert app["fab-format-version"] == 1
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    needed = {r.name: r.specifier for r in map(Requirement, project["project"]["dependencies"])}
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    mine = {r.name: r.specifier for r in map(Requirement, own)}
    assert needed["flwr"].contains(app["flwr-version-target"])
    assert needed["flwr"].contains("1.41.0") == mine["flwr"].contains("1.41.0")
    assert needed["fedsens"].contains(fedsens.__version__)
    assert all(any(each.operator == ">=" for each in spec) for spec in needed.values())
    assert not list(folder.rglob("*.safetensors"))


@pytest.mark.slow
def test_the_quickstart_runs_from_what_was_packed(tmp_path):
    folder = unpacked("hub", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr[-3000:]
    assert (folder / "out" / "protected.safetensors").is_file()
