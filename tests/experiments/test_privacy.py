"""The experiments on leakage run from end to end, and say what they found."""

import json

from typer.testing import CliRunner

import experiments.privacy.__main__ as privacy
import experiments.privacy.tokens as tokens
from experiments.privacy.figure import mean_of


def test_leakage_against_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(privacy, "RATIOS", (0.3,))
    monkeypatch.setattr(privacy, "OUTPUTS", 10)
    options = ["--images", "1", "--steps", "60", "--out", str(tmp_path)]
    result = CliRunner().invoke(privacy.app, options)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "digits.json").read_text())["rows"]
    assert len(rows) == 1 + 2 * 2 + 2 + 5

    def ssim(attack, policy, ratio):
        return mean_of(rows, attack, policy, ratio, "ssim")

    assert ssim("dlg-tv", "none", 0.0) > 0.9 > ssim("dlg-naive", "sensitivity", 0.3)
    assert ssim("dlg-tv", "sensitivity", 0.3) > 0.9
    assert ssim("dlg-tv", "all", 1.0) < ssim("guess", "none", 0.0)


def test_tokens_of_a_text_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "POLICIES", ("sensitivity", "random", "critical_layers"))
    monkeypatch.setattr(tokens, "RATIOS", (0.3,))
    monkeypatch.setattr(tokens, "VOCABULARY", 300)
    result = CliRunner().invoke(tokens.app, ["--batches", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "tokens.json").read_text())["rows"]
    none, sensitivity, random, _, embedding, linears, block, everything = rows
    assert none["embedding"] == none["span"] == none["both"] == none["precision"] == 1
    assert sensitivity["both"] == random["embedding"] == 1
    assert embedding["embedding"] == 0
    assert linears["span"] == 0
    assert block["both"] == everything["both"] == 0
    assert 0 < none["guess"] < 1
