"""``fedsens plan``: a line for each ratio, and errors in one sentence."""

import json
from functools import cache, partial

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from fedsens.cli import app
from fedsens.planning import _calibrate

measured = cache(_calibrate.calibrate)  # once for all commands of a preset


@pytest.fixture(autouse=True)
def measured_once(monkeypatch):
    """This machine's speed with a smaller model than the command takes, and one round of each."""
    monkeypatch.setattr(_calibrate, "LARGE", 2**15)
    monkeypatch.setattr(_calibrate, "calibrate", partial(measured, repeats=1))


def plan_command(*options):
    return CliRunner().invoke(app, ["plan", *map(str, options)], env={"COLUMNS": "100"})


def test_the_command_shows_a_line_per_ratio_and_the_largest_that_fits(tmp_path):
    path = tmp_path / "plan.json"
    result = plan_command(
        *("--parameters", 50_000, "--ratio", 0.2, "--max-mb", 0.5, "--preset", "exact"),
        *("--clients", 3, "--json", path),
    )
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    asked, largest = content["plans"]
    assert (asked["ratio"], content["federation"]["clients"]) == (0.2, 3)
    assert asked["encrypted"] == 10_000
    assert 0.4e6 < largest["bytes_up"] + largest["bytes_down"] <= 0.5e6
    assert "result.arrays" not in result.output + result.stderr
    assert [line.split()[0] for line in result.output.splitlines()[4:6]] == ["0.2", "0.164"]
    assert "256-bit" in result.output


@pytest.mark.parametrize(
    ("budget", "ratios", "said"),
    [
        (0.405, ["0.1", "0.3", "0.5", "1", "0 (largest)"], "is 0: nothing can be encrypted"),
        (99, ["0", "0.1", "0.3", "0.5", "1 (largest)"], "within the budget is 1"),
        (0.5, ["0", "0.1", "0.3", "0.5", "1", "0.164 (largest)"], "is 0.164"),
    ],
)
def test_the_largest_ratio_is_marked_and_listed_once(budget, ratios, said):
    result = plan_command("--parameters", 50_000, "--preset", "exact", "--max-mb", budget)
    lines = [line.strip().split("  ")[0].strip() for line in result.output.splitlines()]
    assert lines[lines.index("0" if "0" in ratios else "0.1") :][: len(ratios)] == ratios
    assert said in " ".join(result.output.split())


def test_a_factory_and_a_file_give_their_size(tmp_path):
    save_file({"a": np.zeros((300, 40), np.float32)}, tmp_path / "w.safetensors")
    named = plan_command(
        "--model", "torch.nn:Linear", "--arg", "in_features=3", "--arg", "out_features=5"
    )
    assert "20 parameters" in named.output
    assert "12,000 parameters" in plan_command("--state-dict", tmp_path / "w.safetensors").output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected one of --model, --state-dict and --parameters, got 0"),
        (["--parameters", 5, "--model", "a:b"], "got 2 of them"),
        (
            ["--parameters", 50_000, "--max-mb", 0.1],
            "expected a budget in which the model fits, 0.403 MB",
        ),
        (["--parameters", 5, "--preset", "huge"], "expected"),
    ],
)
def test_errors_are_one_sentence(options, message):
    result = plan_command(*options)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
