"""The page on reliability says what the tests and the results say."""

import re
from pathlib import Path

import pytest

from .reliability import AREAS, PAGE, _cases_of, cases, page, tables


def test_the_page_is_in_step_with_tests_and_results():
    assert PAGE.read_text() == page(), "run make docs"


def test_every_area_has_tests_and_every_link_leads_somewhere():
    for area in AREAS:
        assert all(list(cases(file)) for file in area.files), area.what
    assert tables()["tests"].count("\n") == len(AREAS) + 2
    for link in re.findall(r"\]\(([^)#]+)", page()):
        assert (PAGE.parent / link).exists(), link


def test_every_test_file_of_clients_servers_and_keys_is_counted_once():
    counted = [file for area in AREAS for file in area.files]
    assert len(counted) == len(set(counted))
    wanted = [*Path(__file__).parent.glob("flower/test_hostile*.py")]
    assert {f"flower/{path.name}" for path in wanted} <= set(counted)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("second", "third"), [(1, 1), (2, 2), (3, 3)])
def test_a_test_is_counted_with_its_parameters(first, second, third):
    assert _cases_of(test_a_test_is_counted_with_its_parameters) == 6
    assert _cases_of(test_every_area_has_tests_and_every_link_leads_somewhere) == 1
