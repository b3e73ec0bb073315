"""Which protection is the cheapest that holds."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fedsens.audit._metrics import share_bounds
from fedsens.audit._recommend import cheapest_first, choices, cost_rank, recommendation
from fedsens.audit._trial import FULL_ENCRYPTION, NO_ENCRYPTION, Outcome, Protection
from fedsens.audit._verdict import verdict
from fedsens.cli import app
from fedsens.cli._audit_run import PRESET
from fedsens.cli._recommend import left_over
from fedsens.crypto import CkksParameters
from fedsens.planning._plan import Speed
from tests.cli.test_audit import outcomes

SIZE = 1_000_000
FRONT, HALF, NOISED = ("first_layers", 0.1), ("random", 0.5), ("first_layers", 0.1, "gaussian:3")


def anchors(count=8):
    return [
        *outcomes(NO_ENCRYPTION, dlg=[1.0] * count),
        *outcomes(FULL_ENCRYPTION, dlg=[0.0] * count),
    ]


def chosen(*some, count=8, confidence=0.95, margin=0.02):
    lines = verdict([*anchors(count), *(o for each in some for o in each)], [0.3] * 8, confidence)
    return choices(lines, SIZE, CkksParameters.preset(PRESET), margin)


def answers(found):
    return {str(each.protection): each.answer for each in found}


def test_the_first_that_holds_is_recommended():
    found = chosen(
        outcomes(FRONT, dlg=[0.9] * 8),
        outcomes(NOISED, dlg=[0.25] * 8),
        outcomes(HALF, dlg=[0.2] * 8),
    )
    assert answers(found) == {
        "nothing": "leaks",
        "first_layers 0.1": "leaks",
        "first_layers 0.1 gaussian:3": "holds",
        "random 0.5": "holds",
        "everything": "holds",
    }
    assert [str(each.protection) for each in found] == [
        "nothing", "first_layers 0.1", "random 0.5", "first_layers 0.1 gaussian:3", "everything"
    ]  # fmt: skip
    text = recommendation(found, 0.95)
    assert text.startswith("random 0.5: no attack tried is above a guess")
    assert "none of 8 found allows for up to 31% of all at 95%" in text


@pytest.mark.parametrize(("size", "said"), [(1000, True), (SIZE, False)])
def test_it_is_said_where_ratio_1_sends_no_more_bytes(size, said):
    lines = verdict([*anchors(), *outcomes(HALF, dlg=[0.2] * 8)], [0.3] * 8)
    found = choices(lines, size, CkksParameters.preset("exact"))
    assert (
        "sends no more bytes than that and needs no belief" in recommendation(found, 0.95)
    ) == said


def test_only_ratio_1_is_said_when_it_is_the_truth():
    found = chosen(outcomes(FRONT, dlg=[0.9] * 8))
    assert recommendation(found, 0.95).startswith("Only ratio 1: no smaller mask tried holds")


def test_what_is_withheld_needs_no_attack_and_costs_no_plaintext():
    found = chosen(outcomes((*FRONT, "withheld"), dlg=[0.3] * 8), outcomes(FRONT, dlg=[0.9] * 8))
    by_name = {str(each.protection): each for each in found}
    held, plain = by_name["first_layers 0.1 withheld"], by_name["first_layers 0.1"]
    assert (held.answer, plain.answer) == ("holds", "leaks")
    assert plain.bytes_up - held.bytes_up == 4 * 0.9 * SIZE
    assert "costs accuracy" in recommendation(found, 0.95)


def test_a_higher_confidence_and_a_smaller_margin_ask_for_more():
    mixed = outcomes(FRONT, dlg=[0.285, 0.295, 0.305, 0.315, 0.295, 0.325, 0.335, 0.275])
    assert answers(chosen(mixed, confidence=0.9))["first_layers 0.1"] == "holds"
    assert answers(chosen(mixed, confidence=0.999))["first_layers 0.1"] == "open"
    assert answers(chosen(mixed, confidence=0.9, margin=0.0))["first_layers 0.1"] == "open"


def test_few_victims_leave_it_open():
    found = chosen(outcomes(FRONT, dlg=[0.1] * 7), count=7)
    assert answers(found)["first_layers 0.1"] == "open"
    assert "Not decided with 7 attacked: first_layers 0.1; attack" in recommendation(found, 0.95)
    many = [outcomes(("random", ratio), dlg=[0.1] * 7) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert "random 0.2, random 0.3 and 2 more; attack" in recommendation(
        chosen(*many, count=7), 0.95
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_score_of_few_victims_is_no_interval(count):
    weak = chosen(outcomes(FRONT, dlg=[0.45] * count), count=count)  # above the guess, none found
    assert answers(weak)["first_layers 0.1"] == "open"
    text = recommendation(chosen(outcomes(FRONT, dlg=[0.9]), count=1), 0.95)
    assert "Behind each that leaks, at least 5.0% of all are found" in text


def test_what_a_time_budget_left_untried_is_said_if_it_is_cheaper():
    found = chosen(outcomes(FRONT, dlg=[0.9] * 8))
    wanted = [Protection(*FRONT), Protection("random", 0.5), Protection("random", 0.3)]
    assert "untried, random 0.3 the first of 2." in left_over(found, wanted)
    assert left_over(found, wanted[:1]) == ""
    held = chosen(outcomes(FRONT, dlg=[0.1] * 8))  # what is dearer need not be tried
    assert left_over(held, wanted) == ""


def test_one_image_found_is_a_leak():
    assert answers(chosen(outcomes(FRONT, dlg=[0.1] * 7 + [0.6])))["first_layers 0.1"] == "leaks"


def test_the_share_that_may_be_found_is_bounded():
    found = chosen(outcomes(FRONT, dlg=[0.1] * 8))
    bounds = {str(each.protection): each.line.possible for each in found}
    assert bounds["first_layers 0.1"] == pytest.approx(1 - 0.05 ** (1 / 8))  # none of eight
    assert bounds["nothing"] == 1
    assert found[0].line.certain == pytest.approx(0.05 ** (1 / 8))  # eight of eight
    assert share_bounds(1, 1)[0] == pytest.approx(0.05)  # one of one
    assert share_bounds(0.5, 4) == (0, share_bounds(1, 4)[1])  # half of an update's images


def test_nothing_is_recommended_where_no_attack_works():
    void = [*outcomes(NO_ENCRYPTION, dlg=[0.5, 0.5]), *outcomes(FULL_ENCRYPTION, dlg=[0, 0])]
    found = choices(verdict(void, [0.3, 0.3]), SIZE, CkksParameters.preset(PRESET))
    assert answers(found) == {"nothing": "open", "everything": "holds"}
    assert recommendation(found, 0.95).startswith("Only ratio 1: no attack tried works")
    first = Protection("first_layers", 0.1)
    assert walked({first: 0}, [first], bare=0.5) == {
        "nothing": 9, "everything": 9
    }  # fmt: skip


def walked(scores, wanted, victims=9, bare=1):
    """The protections that are attacked, and on how many victims each."""
    known, places = {}, {}

    def holds(protection):
        return scores[protection] == 0

    for trial in cheapest_first(wanted, ["dlg", "idlg"], victims, known, holds):
        score = {NO_ENCRYPTION: bare, FULL_ENCRYPTION: 0}.get(
            trial.protection, scores.get(trial.protection)
        )
        known[trial] = Outcome(trial, score, score > 0.5, 0.0), torch.zeros(0)
        places.setdefault(str(trial.protection), set()).add(trial.image)
    return {name: len(images) for name, images in places.items()}


def test_a_walk_leaves_what_is_refuted_and_stops_at_what_holds():
    plain, noised = Protection("first_layers", 0.1), Protection("first_layers", 0.1, "gaussian:3")
    weak, late = Protection("random", 0.3), Protection("first_layers", 0.1, "withheld")
    wanted = [FULL_ENCRYPTION, late, noised, plain, weak, NO_ENCRYPTION]
    ends = {"nothing": 9, "everything": 9}
    assert walked({plain: 0.9, weak: 0.3, noised: 0, late: 0}, wanted) == ends | {
        "first_layers 0.1": 1, "random 0.3": 9, "first_layers 0.1 gaussian:3": 9
    }  # fmt: skip
    assert walked({plain: 0, weak: 0, noised: 0, late: 0}, wanted) == ends | {"first_layers 0.1": 9}
    assert walked(dict.fromkeys([plain, weak, noised, late], 0.6), wanted) == ends | {
        "first_layers 0.1": 1, "random 0.3": 1, "first_layers 0.1 gaussian:3": 1,
        "first_layers 0.1 withheld": 1
    }  # fmt: skip
    assert sorted(wanted, key=cost_rank) == [
        NO_ENCRYPTION,
        plain,
        weak,
        noised,
        late,
        FULL_ENCRYPTION,
    ]


def run(*options):
    result = CliRunner().invoke(app, ["audit", *map(str, options)], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_one_folder_has_one_verdict_whichever_command_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsens.cli._recommend.calibrate", lambda preset: Speed(0, 0, 0, 0, 0))
    options = ["--images", 8, "--attack", "learned", "--policy", "first_layers", "--ratio", 0.1]
    options += ["--remainder", "plain,noised:3"]
    first = run("--out", tmp_path, *options, "--no-membership", "--minutes", 1e-9)
    assert "The time budget left 32 trials untried" in first
    text = run("--out", tmp_path, *options, "--no-membership")
    verdict_ = "first_layers 0.1 gaussian:3: no attack tried is above a guess"
    assert verdict_ in text
    content = json.loads((tmp_path / "audit.json").read_text())
    assert (content["untried"], content["membership"], len(content["labels"])) == (0, [], 4)
    assert verdict_ in run("recommend", tmp_path, "--no-run")
    told = json.loads((tmp_path / "recommend.json").read_text())["verdict"]
    assert told in text
    page = (tmp_path / "recommend.html").read_text()
    assert told in page
    assert "data:image/png" in page


def test_what_is_missing_is_run_and_a_study_begun_if_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsens.cli._recommend.calibrate", lambda preset: Speed(0, 0, 0, 0, 0))
    options = ["--policy", "first_layers", "--ratio", 0.1, "--remainder", "plain,noised:3,withheld"]
    options += ["--attack", "learned"]
    folder = tmp_path / "new"
    text = run("recommend", folder, "--images", 8, *options)
    assert "first_layers 0.1 gaussian:3: no attack tried" in text
    lines = (folder / "audit.jsonl").read_text().splitlines()[1:]
    tried = [json.loads(line)["trial"] for line in lines]
    assert [
        t["image"] for t in tried if (t["policy"], t["remainder"]) == ("first_layers", "plain")
    ] == [0]
    assert not [t for t in tried if t["remainder"] == "withheld"]
    assert (
        text.split("MB (both ways)")[1]
        == run("recommend", folder, *options).split("MB (both ways)")[1]
    )
    assert len((folder / "audit.jsonl").read_text().splitlines()) == 1 + len(lines)
