"""The built wheel in an environment of its own, beside Flower: what a user who installs it has.

Its dependencies come from this environment, so that nothing is downloaded; fedsens itself, and the
commands of Flower and fedsens, are the new environment's own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

from experiments.flower_examples.apps import copy_app
from fedsens.simulation._summary import SimulationSummary

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
READER = """
import numpy as np
from fedsens.data import RawImages, register_reader

@register_reader("square", claims=lambda source: source == "square")
def read(source):
    return RawImages(np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2)
"""


class Environment:
    """A virtual environment with the wheel."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        self.packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        self._link_dependencies()
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        subprocess.run([self.bin / "python", *install], check=True)
        for point in distribution("flwr").entry_points:
            if point.group == "console_scripts":
                self._script(point.name, point.module, point.attr)

    def _link_dependencies(self) -> None:
        """All that is installed here but fedsens, and what does not load beside this torch."""
        own = {path.name for path in self.packages.iterdir()}
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            other = path.name.startswith(("fedsens", "torchvision")) or path.suffix == ".pth"
            if path.name not in own and not other:
                (self.packages / path.name).symlink_to(path)

    def _script(self, name: str, module: str, attribute: str) -> None:
        path = self.bin / name
        path.write_text(
            f"#!{self.bin / 'python'}\nimport sys\nfrom {module} import {attribute}\n"
            f"sys.exit({attribute}())\n"
        )
        path.chmod(0o755)

    def run(self, command: str, *arguments: str, cwd: Path) -> str:
        """Run a command in a folder and return what it says."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("FEDSENS_", "PYTHON"))}
        done = subprocess.run(
            [self.bin / command, *arguments],
            cwd=cwd,
            env=mine | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, *build, "-w", str(folder), str(ROOT)], check=True)
    return Environment(folder / "environment", next(folder.glob("fedsens-*.whl")))


def test_the_wheel_is_what_runs_and_holds_the_library_alone(installed, tmp_path):
    code = "import fedsens, fedsens.flower; print(fedsens.__file__)"
    where = installed.run("python", "-c", code, cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.packages)
    assert {path.name for path in installed.packages.glob("fedsens*")} == {
        "fedsens",
        next(installed.packages.glob("fedsens-*.dist-info")).name,
    }
    assert not {"tests", "experiments", "server", "client"} & {
        path.name for path in installed.packages.iterdir()
    }
    assert installed.run("fedsens", "--version", cwd=tmp_path).startswith("fedsens 0.")
    told = next(installed.packages.glob("fedsens-*.dist-info/METADATA")).read_text()
    assert not re.search(r"\]\((?!https?://)", told)  # an index has no page for a relative link


def test_an_installed_package_announces_its_reader(installed, tmp_path):
    info = installed.packages / "square_reader-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: square-reader\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedsens.readers]\nsquare = square_reader\n")
    (installed.packages / "square_reader.py").write_text(READER)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
    )
    arguments = ["--model", "net:net", "--data", "square", "--out", "map.safetensors"]
    installed.run("fedsens", "map", *arguments, cwd=tmp_path)
    assert "fedsens sensitivity map" in installed.run(
        "fedsens", "inspect", "map.safetensors", cwd=tmp_path
    )


def test_flowers_quickstart_runs_again_as_for_the_first_time(installed, tmp_path):
    """A fresh app that knows nothing of fedsens simulate: no output folder, runs inside it."""
    app = copy_app("pytorch", tmp_path / "app", fedsens=True)
    options = ("--clients", "3", "--rounds", "1")
    for call in (("--baseline",), ("--no-baseline", "--ratio", "1")):
        output = installed.run("fedsens", "simulate", *options, *call, cwd=app)
        assert "eval_acc" in output
    summaries = [
        SimulationSummary.model_validate_json(path.read_text())
        for path in sorted((app / "runs").glob("*/summary.json"))
        if path.parent.name != "latest"
    ]
    assert [round(each.ratio, 2) for each in summaries] == [0.1, 1.0]
    first = summaries[0]
    assert first.baseline is not None
    assert first.baseline.encrypted_parameters == 0
    assert (first.metric, first.clients_agreeing) == ("eval_acc", 3)
    latest = json.loads((app / "runs" / "latest" / "summary.json").read_text())
    assert latest["accuracy"] == summaries[-1].scores
    open_latest(installed, app)


@pytest.mark.parametrize("name", ["huggingface", "lightning", "sklearn"])
def test_flowers_other_quickstarts_run(installed, tmp_path, name):
    app = copy_app(name, tmp_path / "app", fedsens=True)
    options = ("--clients", "3", "--rounds", "1", "--no-baseline")
    assert "eval_" in installed.run("fedsens", "simulate", *options, cwd=app)
    open_latest(installed, app)


def open_latest(installed, app):
    """What the server saved of the latest run, by the key of one of its clients."""
    latest = app / "runs" / "latest"
    key = next((latest / "state").glob("run-*/node-*/key"))
    arguments = ["protected.safetensors", "--key", str(key), "--out", "mine.safetensors"]
    installed.run("fedsens", "open", *arguments, cwd=latest)
    assert (latest / "mine.safetensors").read_bytes() == (latest / "model.safetensors").read_bytes()
