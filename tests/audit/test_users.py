"""Models as users bring them go through both commands, to verdict, tables and pictures."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsens.cli import app


def photographs(path):
    """Smooth random pictures: coarse noise, enlarged."""
    rng = np.random.default_rng(0)
    x = np.kron(rng.random((600, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    np.savez(path, x=(255 * x).astype(np.uint8), y=np.arange(600) % 10)
    return path


def sentences(path):
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 200, (600, 8)), y=np.arange(600) % 3)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)  # about two CPU minutes in all, on a machine busy with other work
@pytest.mark.parametrize("name", ["resnet18", "flower", "lightning", "bert"])
def test_a_users_model_goes_through_both_commands(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # a broken one must not stop transformers
    data = (sentences if name == "bert" else photographs)(tmp_path / "data.npz")
    out = tmp_path / "study"
    few, policy = ["--images", "1", "--steps", "5"], "first_layers"
    if name == "resnet18":  # whose map, of eleven million parameters, takes minutes
        few, policy = ["--images", "1", "--steps", "1", "--no-membership"], "random"
    given = ["--model", f"tests.audit.models:{name}", "--data", str(data), *few]
    mask = ["--policy", policy, "--ratio", "0.1"]
    ran = CliRunner().invoke(app, ["audit", *given, *mask, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    (out / "audit.txt").write_text(ran.output)  # to be looked at, beside the pictures
    further = mask if name == "resnet18" else []
    recommend = ["audit", "recommend", str(out), "--minutes", "0.2", *further]
    again = CliRunner().invoke(app, recommend)
    assert again.exit_code == 0, again.output
    (out / "recommend.txt").write_text(again.output)
    verdict = json.loads((out / "recommend.json").read_text())["verdict"]
    assert verdict[:30] in again.output
    kept = {each.name for each in out.iterdir()}
    assert {"audit.json", "leakage.png", "recommend.html", "recommend.png"} <= kept
    assert ("sheet.png" in kept) == (name != "bert")
