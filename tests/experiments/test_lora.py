"""Adapters of language models: encrypted as plain, the base at home, and back into PEFT."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("lora_adapter.py")

# A mean of bfloat16 values often lies halfway between two, and rounds to either.
LOSS = {"float32": 5e-5, "bfloat16": 5e-3}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def needs_peft():
    pytest.importorskip("importlib.metadata").version("peft")


def python(*arguments):
    """A process of its own: peft's imports warn, and load a torchvision that may not fit."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-4000:]
    return done.stdout


def test_encrypted_adapters_learn_as_plain_ones_and_the_base_is_never_sent(tmp_path):
    python("-m", "experiments.lora", "bert", "--rounds", 2, "--clients", 3, "--out", tmp_path)
    rows = json.loads((tmp_path / "lora.json").read_text())["rows"]
    assert len(rows) == 12
    for plain in [row for row in rows if row["way"] == "FedAvg"]:
        runs = [row for row in rows if row["dtype"] == plain["dtype"]]
        assert {run["tensors"] for run in runs} == {10}
        for run in runs:
            near = 0 if run["way"] == "ratio 0" else LOSS[plain["dtype"]]
            assert run["loss"] == pytest.approx(plain["loss"], abs=near), run


@pytest.mark.parametrize("model", ["qwen2", "llama", "bert"])
def test_an_opened_adapter_loads_and_is_what_the_clients_evaluated(tmp_path, model):
    found = json.loads(python(SCRIPT, model, tmp_path).splitlines()[-1])
    assert found["types"] == ["torch.bfloat16", "torch.float32"]
    assert found["missing"] == []
    assert found["opened"] == pytest.approx(found["clients"], abs=1e-6)
    assert found["base"] != pytest.approx(found["clients"], abs=1e-3)


@pytest.mark.parametrize("model", ["qwen2", "bert"])
def test_a_is_as_sensitive_as_nothing_until_b_has_moved(tmp_path, model):
    found = json.loads(python(SCRIPT, model, tmp_path, "--map").splitlines()[-1])
    assert found["names"] == found["sent"]
    assert found["first"]["lora_A"] == 0
    assert min(found["first"]["lora_B"], *found["second"].values()) > 0
