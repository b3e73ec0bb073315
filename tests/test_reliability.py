"""The page on reliability says what the tests and the results say."""

import re

from .reliability import PAGE, page, tables


def test_the_page_is_in_step_with_tests_and_results():
    assert PAGE.read_text() == page(), "run make docs-reliability"


def test_every_table_has_rows_and_every_link_leads_somewhere():
    for name, table in tables().items():
        assert name == "faults" or table.count("\n") > 8, name
    for link in re.findall(r"\]\(([^)#]+)", page()):
        assert (PAGE.parent / link).exists(), link


def test_a_case_is_counted_for_every_parameter():
    row = next(r for r in tables()["clients"].splitlines() if "a wrong update is left out" in r)
    assert int(row.split(" | ")[1]) > 50
    assert "`NaN or infinity`" in row
