"""Which protection is the cheapest that holds."""

import json

import pytest
from typer.testing import CliRunner

from fedsens.audit.recommend import choices
from fedsens.audit.recommending import recommendation
from fedsens.audit.trial import EVERYTHING, NOTHING
from fedsens.audit.verdict import verdict
from fedsens.cli import app
from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError

from .test_command import outcomes

SIZE = 1_000_000
FRONT, HALF, NOISED = ("first_layers", 0.1), ("random", 0.5), ("first_layers", 0.1, "gaussian:3")


def anchors(count=8):
    return [*outcomes(NOTHING, dlg=[1.0] * count), *outcomes(EVERYTHING, dlg=[0.0] * count)]


def chosen(*some, count=8, confidence=0.95, margin=0.02):
    lines = verdict([*anchors(count), *(o for each in some for o in each)], [0.3] * 8, confidence)
    codec = CkksParameters.preset("compact")
    return choices(lines, SIZE, codec, confidence, margin)


def answers(found):
    return {str(each.protection): each.answer for each in found}


def test_the_cheapest_that_holds_is_recommended():
    found = chosen(
        outcomes(FRONT, dlg=[0.9] * 8),
        outcomes(NOISED, dlg=[0.25] * 8),
        outcomes(HALF, dlg=[0.2] * 8),
    )
    assert answers(found) == {
        "none 0": "leaks",
        "first_layers 0.1": "leaks",
        "first_layers 0.1 gaussian:3": "holds",
        "random 0.5": "holds",
        "all 1": "holds",
    }
    costs = [each.bytes_up + each.bytes_down for each in found]
    assert costs == sorted(costs)
    assert recommendation(found, 0.95).startswith("first_layers 0.1 gaussian:3: no attack tried")


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
    assert "Not decided with 7 victims: first_layers 0.1" in recommendation(found, 0.95)


def test_one_image_found_is_a_leak():
    assert answers(chosen(outcomes(FRONT, dlg=[0.1] * 7 + [0.6])))["first_layers 0.1"] == "leaks"


def test_the_share_that_may_be_found_is_bounded():
    found = chosen(outcomes(FRONT, dlg=[0.1] * 8))
    bounds = {str(each.protection): each.found for each in found}
    assert bounds["first_layers 0.1"] == pytest.approx(1 - 0.05 ** (1 / 8))  # none of eight
    assert bounds["none 0"] == 1


def test_nothing_is_recommended_where_no_attack_works():
    void = [*outcomes(NOTHING, dlg=[0.5, 0.5]), *outcomes(EVERYTHING, dlg=[0, 0])]
    with pytest.raises(ConfigurationError, match="an attack works with nothing encrypted"):
        choices(verdict(void, [0.3, 0.3]), SIZE, CkksParameters.preset("compact"), 0.95, 0.02)


def test_the_command_reads_a_study(tmp_path):
    runner = CliRunner()

    def audit(*options):
        return runner.invoke(app, ["audit", *map(str, options)], env={"COLUMNS": "140"})

    result = audit("recommend", tmp_path)
    assert result.exit_code == 1
    assert "expected a study" in " ".join(result.output.split())
    options = ["--out", tmp_path, "--images", 8, "--attack", "learned", "--policy", "first_layers"]
    options += ["--ratio", 0.1, "--remainder", "plain,noised:3"]
    first = audit(*options, "--minutes", 1e-9)
    assert "The time budget left 32 of 32 trials untried" in " ".join(first.output.split())
    result = audit(*options, "--no-presence")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "audit.json").read_text())
    assert (content["untried"], content["presence"], len(content["labels"])) == (0, [], 4)
    result = audit("recommend", tmp_path)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "first_layers 0.1 gaussian:3: no attack tried is above a guess" in text
    assert "first_layers 0.1 0.0" in text
