"""The pure parts of the audit of old masks: the union, void rounds, the cases."""

import pytest

from experiments.privacy.leak import GUESS
from experiments.staleness.audit import ATTACKS, POLICIES, ROUNDS, cases_of
from experiments.staleness.audit_figure import draw
from experiments.staleness.union import (
    NEW,
    NO_ENCRYPTION,
    OLD,
    attacks_of,
    lines_of,
    union_of,
    working,
)


def row(number, policy, made, attack, image, ssim, found):
    mask = {"round": number, "policy": policy, "made": made, "staleness": 0.5 * (made == OLD)}
    return mask | {"attack": attack, "image": image, "ssim": ssim, "found": found}


def test_the_union_is_the_best_of_the_attacks_image_by_image():
    rows = [
        row(1, "first_layers", OLD, "dlg-tv", 0, 0.9, 0),
        row(1, "first_layers", OLD, "learned", 0, 0.2, 1),
        row(1, "first_layers", OLD, "dlg-tv", 1, 0.1, 0),
        row(1, "first_layers", OLD, "learned", 1, 0.3, 0),
        row(1, "first_layers", OLD, GUESS, 1, 1.0, 1),
        row(1, "first_layers", NEW, "learned", 1, 1.0, 1),
        row(5, "first_layers", OLD, "learned", 1, 1.0, 1),
    ]
    assert union_of(rows, 1, "first_layers", OLD) == (pytest.approx(0.6), 0.5)


def test_a_round_is_void_where_no_attack_works_with_nothing_encrypted():
    rows = [
        row(0, NO_ENCRYPTION, NEW, GUESS, 0, 1.0, 1),
        row(0, NO_ENCRYPTION, NEW, "dlg-tv", 0, 0.99, 0),
        row(0, NO_ENCRYPTION, NEW, "learned", 0, 0.5, 0),
        row(5, NO_ENCRYPTION, NEW, "dlg-tv", 0, 0.9, 0),
        row(5, NO_ENCRYPTION, NEW, "learned", 0, 0.3, 1),
        row(20, NO_ENCRYPTION, NEW, "dlg-tv", 0, 0.9, 0),
        row(20, NO_ENCRYPTION, NEW, "learned", 0, 0.9, 0),
        row(20, "first_layers", NEW, "learned", 0, 1.0, 1),
    ]
    assert [working(rows, number) for number in (0, 5, 20)] == [["dlg-tv"], ["learned"], []]


def test_lines_are_in_the_order_of_the_rounds_and_say_how_old_the_mask_is(tmp_path):
    masks = attacks_of((0, 20), ("first_layers",))
    rows = [row(mask["round"], mask["policy"], mask["made"], "dlg-tv", 0, 1.0, 1) for mask in masks]
    lines = lines_of(rows, (0, 20), ("first_layers",))
    assert [(line["round"], line["policy"], line["made"]) for line in lines] == [
        (0, NO_ENCRYPTION, NEW),
        (0, "first_layers", NEW),
        (20, NO_ENCRYPTION, NEW),
        (20, "first_layers", OLD),
        (20, "first_layers", NEW),
    ]
    assert [line["staleness"] for line in lines] == [0, 0, 0, 0.5, 0]
    draw(lines, 0.3, "title", tmp_path / "audit.png")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_every_case_is_measured_once_and_anchors_have_ratio_0():
    cases = cases_of({"ratio": 0.3}, image=2)
    masks = len(ROUNDS) + len(POLICIES) * (2 * len(ROUNDS) - 1)
    assert len(cases) == 1 + masks * len(ATTACKS)
    assert len({tuple(case.items()) for case in cases}) == len(cases)
    ratios = {case["policy"]: case["ratio"] for case in cases}
    assert ratios == {NO_ENCRYPTION: 0.0, **dict.fromkeys(POLICIES, 0.3)}
    assert {case["image"] for case in cases} == {2}
