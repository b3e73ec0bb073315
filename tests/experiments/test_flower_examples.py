"""Flower's quickstarts: a short patch each, and the same result at every ratio."""

import subprocess
import sys

import pytest

from experiments.flower_examples.apps import NAMES, changed_lines, copy_app, run_app

# Metric and how far another order of the batches moves it; 0 where nothing is drawn.
METRICS = {
    "pytorch": ("eval_acc", 0.04),
    "huggingface": ("eval_acc", 0.04),
    "lightning": ("eval_loss", 0.004),
    "sklearn": ("eval_acc", 1e-9),
}
LIBRARIES = {"huggingface": "transformers", "lightning": "lightning"}


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_short_and_what_it_makes_is_python(name, tmp_path):
    assert changed_lines(name) <= 15
    folder = copy_app(name, tmp_path / "app", fedsens=True)
    for path in folder.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    assert "SelectiveEncryptionMod()" in text
    assert "fedsens" not in "".join(
        path.read_text() for path in copy_app(name, tmp_path / "plain", fedsens=False).rglob("*.py")
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_an_app_learns_the_same_with_and_without_encryption(name):
    if (library := LIBRARIES.get(name)) is not None:
        complete = "from experiments.flower_examples.apps import complete_torchvision"
        code = f"{complete}; complete_torchvision(); import {library}"
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"{library} does not load here: {found.stderr.strip().splitlines()[-1]}")
    metric, tolerance = METRICS[name]
    plain, *runs = (run_app(name, ratio) for ratio in (None, 0.0, 0.1, 1.0))
    assert runs[0] == plain
    assert plain["encrypted"] == 0
    for run in runs[1:]:
        assert run["encrypted"] > 0
        assert run[metric] == pytest.approx(plain[metric], abs=tolerance)
