"""The driver of ``make fuzz``: counts, goes on, and stops at a finding."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import table
from .run import result_of
from .run_target import Drive
from .targets import BY_NAME


def drive(work: Path, runs: int, *options: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.run_target",
        "mask",
        str(runs),
        str(work),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (work / "mask.log").write_text(done.stderr)
    return result_of("mask", work)


@pytest.mark.slow
def test_a_run_goes_on_where_it_ended(tmp_path):
    drive(tmp_path / "a", 200, "--blind")
    first = drive(tmp_path / "a", 500, "--blind")
    assert first["inputs"] == sum(first["outcomes"].values()) == 500
    assert first["outcomes"]["MaskError"] > 300
    again = drive(tmp_path / "b", 200, "--blind")
    again = drive(tmp_path / "b", 500, "--blind")
    assert again["outcomes"] == first["outcomes"]


def test_counts_of_another_version_are_not_added_to(tmp_path):
    (tmp_path / "mask.json").write_text(json.dumps({"version": "another", "inputs": 5}))
    with pytest.raises(SystemExit, match="results of this version"):
        Drive("mask", 10, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="make fuzz installs it")
def test_coverage_guides_the_inputs(tmp_path):
    result = drive(tmp_path, 3000)
    assert result["inputs"] == 3000
    assert result["edges"] > 10
    assert (result["outcomes"]["accepted"] > 0) == (result["corpus"] > 0)


def test_a_finding_is_kept_and_ends_the_run(tmp_path, monkeypatch, caplog):
    mask = Drive("mask", 10, tmp_path)

    def parse(data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mask.guard, "target", BY_NAME["mask"].__class__("mask", parse, 1))
    with pytest.raises(ZeroDivisionError):
        mask.try_input(b"found")
    (kept,) = tmp_path.glob("finding-mask-*")
    assert kept.read_bytes() == b"found"
    assert "ZeroDivisionError" in caplog.text


def test_the_page_holds_the_table_of_the_results():
    assert table.page() == table.PAGE.read_text()
    results = json.loads(table.RESULTS.read_text())["targets"]
    assert list(results) == list(BY_NAME)
    assert all(sum(each["outcomes"].values()) == each["inputs"] for each in results.values())
    assert all(each["inputs"] >= 1_000_000 for each in results.values())
    assert len({each["version"] for each in results.values()}) == 1
