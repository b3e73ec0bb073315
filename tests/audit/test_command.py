"""Studies: the verdict, what is kept on disk, and the command."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from fedsens.audit.metrics import interval
from fedsens.audit.record import Record
from fedsens.audit.screen import conclusion
from fedsens.audit.study import EVERYTHING, NOTHING, Outcome, Study, Trial, trials_of
from fedsens.audit.verdict import union_of, verdict
from fedsens.cli import app
from fedsens.errors import ConfigurationError

from .kit import MODELS, digits, study

PRIOR = interval([0.3, 0.3])


def outcomes(mask, **scores):
    """One outcome for each attack and score."""
    return [
        Outcome(Trial(*mask, name.replace("_", "-"), image), score, 20.0, score > 0.5, 1.0)
        for name, values in scores.items()
        for image, score in enumerate(values)
    ]


def test_the_union_takes_the_best_of_all_but_naive_attacks():
    lines = verdict([
        *outcomes(NOTHING, dlg=[1, 1], idlg=[0.96, 0.96], dlg_naive=[1, 1], inverting=[0.9, 0.4]),
        *outcomes(("random", 0.5), dlg=[0.2, 0.9], idlg=[0.4, 0.1], dlg_naive=[1, 1]),
        *outcomes(("random", 0.5), inverting=[0.6, 0.3]),  # weak, but what it finds is found
    ])
    union = union_of(lines)["random", 0.5]
    assert union.ssim.mean == pytest.approx((0.6 + 0.9) / 2)
    assert union.identified == 1
    works = {line.attack: line.works for line in lines if line.ratio == 0.5}
    assert works == {
        "dlg": True, "idlg": True, "dlg-naive": True, "inverting": False, "union": True
    }  # fmt: skip


def test_the_conclusion_names_the_smallest_mask_that_is_no_better_than_a_guess():
    open_ = outcomes(NOTHING, dlg=[1, 1])
    closed = outcomes(EVERYTHING, dlg=[0, 0])
    weak = outcomes(("random", 0.5), dlg=[0.9, 0.9])
    strong = outcomes(("random", 0.9), dlg=[0.1, 0.2])
    assert "policy random, ratio 0.9" in conclusion(verdict(open_ + closed + weak + strong), PRIOR)
    assert conclusion(verdict(open_ + closed + weak), PRIOR).startswith("Only ratio 1 keeps")
    assert conclusion(verdict(open_ + weak), PRIOR).startswith("No mask tried")
    void = outcomes(NOTHING, dlg=[0.5, 0.5], dlg_naive=[1, 1])
    assert conclusion(verdict(void + closed), PRIOR).startswith("No attack tried works")


def test_an_attack_that_tells_images_apart_works():
    told = [Outcome(Trial(*NOTHING, "learned", i), 0.7, 9.0, True, 1.0) for i in range(2)]
    hidden = outcomes(("random", 0.9), learned=[0.6, 0.7])
    assert union_of(verdict([*told, *hidden]))["random", 0.9].ssim.mean == pytest.approx(0.65)


def test_one_image_told_from_others_is_more_than_a_guess():
    told = [Outcome(Trial("random", 0.9, "dlg", 0), 0.1, 9.0, True, 1.0)]
    lines = verdict([*outcomes(NOTHING, dlg=[1, 1]), *told])
    assert not union_of(lines)["random", 0.9].is_noise(PRIOR)


def test_the_union_has_told_an_image_if_any_attack_has():
    best = Outcome(Trial("random", 0.9, "dlg", 0), 0.4, 9.0, False, 1.0)
    other = Outcome(Trial("random", 0.9, "learned", 0), 0.3, 9.0, True, 1.0)
    for some in ([best, other], [other, best]):
        union = union_of(verdict([*outcomes(NOTHING, dlg=[1], learned=[0.4]), *some]))
        assert (union["random", 0.9].ssim.mean, union["random", 0.9].identified) == (0.4, 1)


def test_trials_begin_with_the_anchors_and_go_image_by_image():
    trials = trials_of(["random", "magnitude"], [0.0, 0.5, 1.0], ["dlg"], 2)
    masks = [NOTHING, EVERYTHING, ("random", 0.5), ("magnitude", 0.5)]
    assert [(t.policy, t.ratio, t.image) for t in trials] == [
        (*mask, image) for image in range(2) for mask in masks
    ]


def test_a_record_goes_on_and_refuses_another_study(tmp_path):
    record = Record(tmp_path, {"steps": 1})
    (one,) = outcomes(NOTHING, dlg=[0.75])
    found = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    record.add(one, found)
    known = Record(tmp_path, {"steps": 1}).known
    assert known.keys() == {one.trial}
    outcome, picture = known[one.trial]
    assert outcome == one
    assert torch.allclose(picture, found, atol=1 / 255)
    with pytest.raises(ConfigurationError, match="got other settings"):
        Record(tmp_path, {"steps": 2})


def test_masks_are_made_without_the_victims():
    made = study(victims=3)
    both = torch.cat([made.victims.x, made.others.x])
    assert len(both) == 1797
    mask = made.mask("sensitivity", 0.1)
    assert mask.k == int(0.1 * made.layout.size)
    assert made.mask("sensitivity", 0.1) is mask
    with pytest.raises(ConfigurationError, match="expected at least 2002 images"):
        study(victims=2000)


def test_forced_layers_are_in_every_mask_but_the_anchors():
    made = Study(
        MODELS["perceptron"](), digits(), victims=1, steps=1, starts=1, seed=0, force=("first",)
    )
    view = made.view("random", 0.95, 0)
    assert view.gradients["1.weight"].isnan().all()
    assert not made.view("none", 0.0, 0).gradients["1.weight"].isnan().any()
    with pytest.raises(ConfigurationError, match="forced layers"):
        made.mask("random", 0.1)


def invoke(*options):
    return CliRunner().invoke(app, ["audit", *map(str, options)], env={"COLUMNS": "100"})


def test_the_command_writes_the_verdict_and_goes_on(tmp_path):
    options = ["--out", tmp_path, "--images", 2, "--steps", 40, "--starts", 1, "--ratio", 0.5]
    options += ["--policy", "sensitivity", "--attack", "idlg", "--attack", "dlg-naive"]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    assert "Only ratio 1" in result.output
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["attack"]) for row in rows] == [
        (policy, attack)
        for policy in ("none", "all", "sensitivity")
        for attack in ("idlg", "dlg-naive", "union")
    ]
    scores = {(row["policy"], row["attack"]): float(row["ssim"]) for row in rows}
    assert scores["sensitivity", "idlg"] >= 0.95 > 0.5 > scores["sensitivity", "dlg-naive"]
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["steps"] == 40
    for name in ("leakage.png", "sheet.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    size = (tmp_path / "audit.jsonl").stat().st_size
    assert invoke(*options).exit_code == 0
    assert (tmp_path / "audit.jsonl").stat().st_size == size  # nothing was tried again
    for other in (("--seed", 1), ("--images", 3)):  # either attacks and calibrates on others
        result = invoke(*options, *other)
        assert result.exit_code == 1
        assert "got other settings" in " ".join(result.output.split())


def test_ones_own_model_is_audited(tmp_path):
    options = ["--model", "tests.audit.kit:perceptron", "--attack", "analytic", "--ratio", 0.5]
    result = invoke(*options, "--policy", "random", "--images", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "analytic" in result.output
    assert invoke("--attack", "x", "--out", tmp_path / "x").exit_code == 1
