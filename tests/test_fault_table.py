"""The table of faults in the docs says what the tests say."""

from .e2e.fault_table import PAGE, faults, page


def test_the_page_is_in_step_with_the_tests():
    assert PAGE.read_text() == page(), "run make docs"


def test_every_fault_has_an_event_an_outcome_and_a_test_of_its_own():
    found = faults()
    assert len(found) >= 12
    for part in ("event", "test"):
        assert len({getattr(fault, part) for fault in found}) == len(found)
    assert all(fault.outcome and "|" not in fault.event + fault.outcome for fault in found)
