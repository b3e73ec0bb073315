"""The experiments on leakage run from end to end, and say what they found."""

import json

import pytest
from typer.testing import CliRunner

import experiments.privacy.__main__ as privacy
import experiments.privacy.seeds as seeds
import experiments.privacy.tokens as tokens
from experiments.cases import SEEDS, rows_of
from experiments.privacy.figure import mean_of
from fedsens.cli import app as command
from fedsens.errors import ConfigurationError


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
    assert [row["seed"] for row in rows] == [seed for seed in SEEDS for _ in range(8)]
    none, sensitivity, random, _, embedding, linears, block, everything = rows[:8]
    assert tokens.spread(rows[:8]) == 0
    assert tokens.averaged(rows_of(rows, {"policy": "none"}))["both"] == 1
    assert none["embedding"] == none["span"] == none["both"] == none["precision"] == 1
    assert sensitivity["both"] == random["embedding"] == 1
    assert embedding["embedding"] == 0
    assert linears["span"] == 0
    assert block["both"] == everything["both"] == 0
    assert 0 < none["guess"] < 1


def test_studies_of_several_seeds_are_one(tmp_path):
    common = ["audit", "--steps", "5", "--attack", "dlg-tv", "--policy", "random", "--ratio", "0.5"]
    for name, seed, images in (("a", 0, 2), ("b", 1, 2), ("other", 2, 3)):
        given = [*common, "--seed", str(seed), "--images", str(images), "--no-membership"]
        ran = CliRunner().invoke(command, [*given, "--out", str(tmp_path / name)])
        assert ran.exit_code == 0, ran.output
    pooled, each = seeds.together([tmp_path / "a", tmp_path / "b"])
    assert [line.protection for line in pooled] == [line.protection for line in each[0]]
    for all_, *own in zip(pooled, *each, strict=True):
        assert all_.victims == sum(line.victims for line in own) == 4
        assert all_.score.mean == pytest.approx(sum(line.score.mean for line in own) / 2)
        assert all_.identified == pytest.approx(sum(line.identified for line in own) / 2)
    shown = CliRunner().invoke(seeds.app, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert "| nothing |" in shown.output
    assert "| everything |" in shown.output
    assert "| label error |" in shown.output
    with pytest.raises(ConfigurationError, match="got other images in"):
        seeds.together([tmp_path / "a", tmp_path / "other"])
    with pytest.raises(ConfigurationError, match="got none; audit into it first"):
        seeds.together([tmp_path / "c"])
