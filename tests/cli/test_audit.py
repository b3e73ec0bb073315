"""Studies: the verdict, what is kept on disk, and the command."""

import csv
import json
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedsens.audit import _attack as registry
from fedsens.audit._attack import attack_names
from fedsens.audit._recommend import choices, recommendation
from fedsens.audit._record import Record, read_settings, run_trials
from fedsens.audit._study import AttackStudy
from fedsens.audit._trial import (
    FULL_ENCRYPTION,
    NO_ENCRYPTION,
    WORST,
    Outcome,
    Protection,
    Trial,
    protections_of,
    trials_of,
)
from fedsens.audit._verdict import union_of, verdict
from fedsens.cli import app
from fedsens.cli._audit_run import PRESET
from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from tests.audit.models import MODELS, digits, study

PRIOR = [0.3, 0.3]


def trial_of(mask, attack, image):
    policy, ratio, remainder = Protection(*mask)
    return Trial(policy, ratio, attack, image, remainder)


def outcomes(mask, **scores):
    """One outcome for each attack and score."""
    return [
        Outcome(trial_of(mask, name.replace("_", "-"), image), score, score > 0.5, 1.0)
        for name, values in scores.items()
        for image, score in enumerate(values)
    ]


def test_the_union_takes_the_best_of_all_but_naive_attacks():
    lines = verdict([
        *outcomes(NO_ENCRYPTION, dlg=[1, 1], idlg=[0.96, 0.96], dlg_naive=[1, 1]),
        *outcomes(NO_ENCRYPTION, inverting=[0.9, 0.4]),
        *outcomes(("random", 0.5), dlg=[0.2, 0.9], idlg=[0.4, 0.1], dlg_naive=[1, 1]),
        *outcomes(("random", 0.5), inverting=[0.6, 0.3]),  # weak, but what it finds is found
    ], PRIOR)  # fmt: skip
    union = union_of(lines)["random", 0.5, "plain"]
    assert union.score.mean == pytest.approx((0.6 + 0.9) / 2)
    assert union.identified == 1
    works = {line.attack: line.works for line in lines if line.ratio == 0.5}
    assert works == {
        "dlg": True, "idlg": True, "dlg-naive": True, "inverting": False, "union": True
    }  # fmt: skip


def concluded(*some):
    lines = verdict([each for these in some for each in these], [0.3] * 8)
    return recommendation(choices(lines, 1000, CkksParameters.preset(PRESET)), 0.95)


def test_the_conclusion_names_the_cheapest_protection_that_is_no_better_than_a_guess():
    open_, closed = outcomes(NO_ENCRYPTION, dlg=[1] * 8), outcomes(FULL_ENCRYPTION, dlg=[0] * 8)
    weak = outcomes(("random", 0.5), dlg=[0.9] * 8)
    strong = outcomes(("random", 0.9, "laplace:1"), dlg=[0.1, 0.2] * 4)
    assert concluded(open_, closed, weak, strong).startswith("random 0.9 laplace:1: no attack")
    assert concluded(open_, closed, weak).startswith("Only ratio 1: no smaller mask")
    assert concluded(open_, weak).startswith("Nothing that was tried")
    void = outcomes(NO_ENCRYPTION, dlg=[0.5] * 8, dlg_naive=[1] * 8)
    assert concluded(void, closed).startswith("Only ratio 1: no attack tried works")
    found = outcomes(("random", 0.5), dlg=[0.6] * 8)
    assert concluded(void, closed, found).endswith("They find something behind random 0.5.")


def test_the_guess_is_what_attacks_make_of_nothing_if_that_is_better():
    some = [*outcomes(NO_ENCRYPTION, dlg=[1, 1]), *outcomes(FULL_ENCRYPTION, dlg=[0.6, 0.1])]
    lines = union_of(verdict([*some, *outcomes(("random", 0.5), dlg=[0.6, 0.4])], PRIOR))
    excess = lines["random", 0.5, "plain"].excess
    assert (excess.low, excess.mean, excess.high) == pytest.approx((0, 0.05, 0.1))


def test_a_victim_of_which_an_attack_is_missing_is_not_in_the_union():
    some = [*outcomes(NO_ENCRYPTION, dlg=[1, 1], idlg=[1, 1])]
    some += outcomes(("random", 0.5), dlg=[0.1, 0.4], idlg=[0.2])
    line = union_of(verdict(some, PRIOR))["random", 0.5, "plain"]
    assert (line.victims, line.score.mean) == (1, 0.2)
    alone = [*some, *outcomes(("random", 0.9), dlg=[0.1])]
    assert ("random", 0.9, "plain") not in union_of(verdict(alone, PRIOR))


def test_a_victim_that_one_attack_has_found_needs_no_other():
    some = [
        *outcomes(NO_ENCRYPTION, dlg=[1, 1], idlg=[1, 1]),
        *outcomes(("random", 0.5), dlg=[0.6, 0.2]),
    ]
    line = union_of(verdict(some, PRIOR))["random", 0.5, "plain"]
    assert (line.victims, line.score.mean, line.identified) == (1, 0.6, 1)


def test_an_attack_that_tells_images_apart_works():
    told = [Outcome(trial_of(NO_ENCRYPTION, "learned", i), 0.7, True, 1.0) for i in range(2)]
    hidden = outcomes(("random", 0.9), learned=[0.6, 0.7])
    assert union_of(verdict([*told, *hidden], PRIOR))[
        "random", 0.9, "plain"
    ].score.mean == pytest.approx(0.65)


def test_one_image_told_from_others_is_more_than_a_guess():
    told = [Outcome(Trial("random", 0.9, "dlg", 0), 0.1, True, 1.0)]
    lines = verdict([*outcomes(NO_ENCRYPTION, dlg=[1, 1]), *told], PRIOR)
    assert not union_of(lines)["random", 0.9, "plain"].is_noise()


def test_an_image_that_is_told_from_nothing_does_not_count_as_told():
    closed = [Outcome(trial_of(FULL_ENCRYPTION, "dlg", i), 0.1, i == 0, 1.0) for i in range(2)]
    some = [Outcome(Trial("random", 0.9, "dlg", i), 0.1, i == 0, 1.0) for i in range(2)]
    line = union_of(verdict([*outcomes(NO_ENCRYPTION, dlg=[1, 1]), *closed, *some], PRIOR))
    assert line[NO_ENCRYPTION].identified == 1
    assert line["random", 0.9, "plain"].identified == 0
    assert line["random", 0.9, "plain"].possible == pytest.approx(0.95)  # one of one might be


def test_the_union_has_told_an_image_if_any_attack_has():
    best = Outcome(Trial("random", 0.9, "dlg", 0), 0.4, False, 1.0)
    other = Outcome(Trial("random", 0.9, "learned", 0), 0.3, True, 1.0)
    for some in ([best, other], [other, best]):
        lines = verdict([*outcomes(NO_ENCRYPTION, dlg=[1], learned=[0.4]), *some], PRIOR)
        union = union_of(lines)["random", 0.9, "plain"]
        assert (union.score.mean, union.identified) == (0.4, 1)


def test_trials_begin_with_the_anchors_and_go_image_by_image():
    masks = protections_of(["random", "magnitude"], [0.0, 0.5, 1.0])
    assert masks == [
        NO_ENCRYPTION,
        FULL_ENCRYPTION,
        ("random", 0.5, "plain"),
        ("magnitude", 0.5, "plain"),
    ]
    trials = trials_of(masks, ["dlg"], 2)
    assert [(t.protection, t.image) for t in trials] == [(m, i) for i in range(2) for m in masks]
    noised = protections_of(["random"], [0.0, 0.5], ["gaussian:1"])
    assert noised[2:] == [("none", 0.0, "gaussian:1"), ("random", 0.5, "gaussian:1")]


def test_no_trial_begins_after_the_time_budget():
    made = study("perceptron", steps=1)
    trials = trials_of([NO_ENCRYPTION], ["learned"], 2) * 3
    times = iter([0, 0, 30, 59, 60, 1000])
    assert len(list(run_trials(made, trials, minutes=1, clock=lambda: next(times)))) == 3
    assert len(list(run_trials(made, trials))) == 6


def test_a_victim_that_is_recovered_is_not_attacked_further(tmp_path):
    made = study("perceptron", victims=10, steps=1)
    record = Record(tmp_path, {})
    masks = [NO_ENCRYPTION, Protection("random", 0.5), FULL_ENCRYPTION]
    trials = trials_of(masks, ["analytic", "learned", "dlg-naive"], 10)
    assert list(run_trials(made, trials, record)) == trials
    tried = {(t.protection, t.attack): [] for t in trials}
    for trial in record.known:
        tried[trial.protection, trial.attack].append(trial.image)
    for attack in ("analytic", "dlg-naive"):
        assert all(tried[mask, attack] == list(range(10)) for mask in masks)
    assert tried[NO_ENCRYPTION, "learned"] == list(range(8))  # to see which attacks work
    assert tried[masks[1], "learned"] == []
    assert tried[FULL_ENCRYPTION, "learned"] == list(range(10))
    lines = union_of(verdict([o for o, _ in record.known.values()], [0.3] * 10))
    assert lines[masks[1]].victims == 10


def test_a_record_goes_on_and_refuses_another_study(tmp_path):
    assert read_settings(tmp_path) is None
    record = Record(tmp_path, {"steps": 1})
    (one,) = outcomes(NO_ENCRYPTION, dlg=[0.75])
    found = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    record.add(one, found)
    known = Record(tmp_path, {"steps": 1}).known
    assert known.keys() == {one.trial}
    outcome, picture = known[one.trial]
    assert outcome == one
    assert torch.allclose(picture, found, atol=1 / 255)
    assert read_settings(tmp_path) == {"steps": 1}
    with pytest.raises(ConfigurationError, match=r"got other settings \(seed, steps\)"):
        Record(tmp_path, {"steps": 2, "seed": 1})


@pytest.mark.parametrize(
    "content", [b"{}x\n", b"7\n", b"\xff\xfe\x00\n", b'{"a": 1', b"a,b\n1,2\n"]
)
def test_a_damaged_or_foreign_folder_is_named(content, tmp_path):
    (tmp_path / "audit.jsonl").write_bytes(content)
    for command in (("--out", tmp_path), ("recommend", tmp_path)):
        result = invoke(*command)
        assert result.exit_code == 1
        text = " ".join(result.output.split())
        assert "expected the settings of a study in line 1" in text
        assert "damaged or no audit's: choose another folder" in text


@pytest.mark.parametrize("odd", ['"score": "high"', '"score": null', '"score": [1]', '"scores": 1'])
def test_an_outcome_of_another_shape_is_named(odd, tmp_path):
    record, path = Record(tmp_path, {}), tmp_path / "audit.jsonl"
    for one in outcomes(NO_ENCRYPTION, dlg=[0.75, 0.5]):
        record.add(one, torch.zeros(1, 2, 2))
    path.write_text(path.read_text().replace('"score": 0.75', odd))
    with pytest.raises(ConfigurationError, match="trial in line 2"):
        Record(tmp_path, {})
    path.write_bytes(path.read_bytes().replace(odd.encode(), b"\xff"))
    with pytest.raises(ConfigurationError, match="trial in line 2"):
        Record(tmp_path, {})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"can be written, got .*file: .*; choose another"):
        Record(tmp_path / "file", {})
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match="Is a directory; choose another"):
        Record(tmp_path, {})


def test_a_study_that_was_ended_before_its_first_line_begins_again(tmp_path):
    (tmp_path / "audit.jsonl").touch()
    assert Record(tmp_path, {"steps": 1}).known == {}
    assert read_settings(tmp_path) == {"steps": 1}


def test_a_line_that_an_interruption_has_cut_is_left_out_and_a_damaged_one_named(tmp_path):
    record, path = Record(tmp_path, {}), tmp_path / "audit.jsonl"
    for one in outcomes(NO_ENCRYPTION, dlg=[0.75, 0.5]):
        record.add(one, torch.zeros(1, 2, 2))
    whole = path.read_text()
    path.write_text(whole[:-30])
    assert len(Record(tmp_path, {}).known) == 1
    record = Record(tmp_path, {})
    record.add(outcomes(NO_ENCRYPTION, dlg=[0.75, 0.5])[1], torch.zeros(1, 2, 2))
    assert path.read_text() == whole
    path.write_text(whole.replace('"image": 0', '"picture": 0'))
    with pytest.raises(ConfigurationError, match="trial in line 2"):
        Record(tmp_path, {})


def test_masks_are_made_without_the_victims():
    made = study(victims=3)
    both = torch.cat([made.victims.x, made.others.x])
    assert len(both) == 1797
    mask = made.mask(Protection("sensitivity", 0.1))
    assert mask.k == int(0.1 * made.layout.size)
    assert made.mask(Protection("sensitivity", 0.1)) is mask
    with pytest.raises(ConfigurationError, match="expected at least 2002 images"):
        study(victims=2000)


def test_forced_layers_are_in_every_mask_but_the_anchors():
    made = AttackStudy(
        MODELS["perceptron"](), digits(), victims=1, steps=1, starts=1, seed=0, force=("first",)
    )
    view = made.view("random", 0.95, 0)
    assert view.gradients["1.weight"].isnan().all()
    assert not made.view("none", 0.0, 0).gradients["1.weight"].isnan().any()
    with pytest.raises(ConfigurationError, match="forced layers"):
        made.mask(Protection("random", 0.1))


@pytest.mark.parametrize("command", [("--out",), ("recommend",)])
def test_a_mask_that_cannot_be_made_is_said_before_anything_is_attacked(command, tmp_path):
    forced = ["--force", "0", "--policy", "random", "--ratio", 0.5, "--ratio", 1e-3, "--images", 1]
    result = invoke(*command, tmp_path, *forced, "--attack", "dlg")
    assert "expected forced layers of at most" in " ".join(result.output.split())
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 1


def test_the_table_says_from_how_many_others_a_victim_is_told(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.random.default_rng(0).random((9, 8, 8)), y=np.arange(9) % 3)
    options = ["--data", tmp_path / "few.npz", "--images", 2, "--attack", "learned", "--out"]
    text = said(invoke(*options, tmp_path / "a", "--policy", "random", "--ratio", 0.5))
    assert "share of the victims told from 7 others" in text


def invoke(*options):
    return CliRunner().invoke(app, ["audit", *map(str, options)], env={"COLUMNS": "110"})


def said(result):
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_command_writes_the_verdict_and_goes_on(tmp_path):
    options = ["--out", tmp_path, "--images", 2, "--steps", 40, "--ratio", 0.5]
    options += ["--policy", "sensitivity", "--attack", "idlg", "--attack", "dlg-naive"]
    assert "Only ratio 1" in said(invoke(*options))
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["attack"]) for row in rows] == [
        (policy, attack)
        for policy in ("none", "all", "sensitivity")
        for attack in ("idlg", "dlg-naive", "union")
    ]
    scores = {(row["policy"], row["attack"]): float(row["score"]) for row in rows}
    assert scores["sensitivity", "idlg"] >= 0.95 > 0.5 > scores["sensitivity", "dlg-naive"]
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["steps"] == 40
    for name in ("leakage.png", "sheet.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    size = (tmp_path / "audit.jsonl").stat().st_size
    with (tmp_path / "membership.csv").open() as file:
        areas = {(row["policy"], row["batch"]): float(row["auc"]) for row in csv.DictReader(file)}
    assert areas["none", "1"] > 0.99 > areas["sensitivity", "8"] > areas["all", "1"] == 0.5
    options.append("--no-membership")
    assert invoke(*options).exit_code == 0
    assert (tmp_path / "audit.jsonl").stat().st_size == size  # nothing was tried again
    for other in (("--seed", 1), ("--images", 3)):  # either attacks and calibrates on others
        result = invoke(*options, *other)
        assert result.exit_code == 1
        assert "got other settings" in " ".join(result.output.split())


def test_real_updates_are_attacked_beside_the_worst_case(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsens.cli._audit_run.REAL_ROUNDS", (0, 2))
    monkeypatch.setattr("fedsens.cli._audit_run.REAL_BATCHES", (2,))
    monkeypatch.setattr("fedsens.cli._audit_run.REAL_IMAGES", 16)
    options = ["--out", tmp_path, "--images", 2, "--steps", 20, "--ratio", 0.5, "--no-membership"]
    options += ["--policy", "random", "--attack", "idlg", "--setting", "real"]
    options += ["--model", "tests.audit.models:perceptron"]
    text = said(invoke(*options))
    assert "The worst case, and what federated learning really sends" in text
    content = json.loads((tmp_path / "audit.json").read_text())
    worst, fresh, trained = content["prior"]
    assert (worst, trained) == (WORST, "4 steps of SGD of 2 images each, after 2 rounds")
    assert len(content["prior"][fresh]) == 2  # updates of 8 images
    assert content["accuracy"][trained] > content["accuracy"][fresh]
    assert {line["case"] for line in content["lines"]} == {worst, fresh, trained}


ONES_OWN = """
import torch
from fedsens.audit._attack import register_attack

@register_attack("one-grey", threat="aware")
def grey(view, budget):
    return torch.full((view.batch, *view.shape), 0.5)
"""


def test_ones_own_model_and_attack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert attack_names()  # which registers those of fedsens
    monkeypatch.setattr("fedsens.audit._attack._attacks", deepcopy(registry._attacks))
    (tmp_path / "ones_own_attack.py").write_text(ONES_OWN)
    options = ["--model", "tests.audit.models:perceptron", "--ratio", 0.5]
    options += ["--attack", "analytic", "--no-membership", "--policy", "random", "--images", 1]
    assert invoke("--attack", "one-grey", "--out", tmp_path / "x").exit_code == 1
    own = ["--import", "ones_own_attack", "--attack", "one-grey", "--out", tmp_path / "a"]
    assert "one-grey" in said(invoke(*options, *own))
    result = invoke(*options, "--import", "ones_own_attacks", "--out", tmp_path / "b")
    assert "expected modules that can be imported" in " ".join(result.output.split())


def test_a_missing_extra_is_said_before_anything_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    for command in ((), ("recommend",)):
        result = invoke(*command)
        assert result.exit_code == 1
        assert "pip install" in " ".join(result.output.split())
        assert isinstance(result.exception, SystemExit)
