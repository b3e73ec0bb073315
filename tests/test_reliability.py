"""The page on reliability says what the tests and the results say."""

import re

from .reliability import PAGE, page, tables


def test_the_page_is_in_step_with_tests_and_results():
    assert PAGE.read_text() == page(), "run make docs-reliability"


def test_every_table_has_rows_and_every_link_leads_somewhere():
    for name, table in tables().items():
        assert table.count("\n") > 8, name
    for link in re.findall(r"\]\(([^)#]+)", page()):
        assert (PAGE.parent / link).exists(), link


def test_a_test_is_counted_with_its_parameters_and_its_cases_have_rows():
    rows = [line.strip("| ").split(" | ") for line in tables()["clients"].splitlines()]
    start = next(i for i, row in enumerate(rows) if "a wrong update is left out" in row[0])
    count = int(rows[start][1])
    assert count > 50
    cases = rows[start + 1 : start + 1 + count]
    assert all(name.startswith("&nbsp;") for name, *_ in cases)
    assert ["&nbsp;&nbsp;NaN", "1", "`NaN or infinity`"] in cases
