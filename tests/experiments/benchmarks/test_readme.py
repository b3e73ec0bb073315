"""The measured tables of the README and of the summary are those of docs/benchmarks."""

import pytest

from experiments.benchmarks.readme import BEGIN, BENCHMARKS, END, MAKERS, pages, with_tables


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_tables_are_up_to_date(page):
    text = page.read_text()
    assert text == with_tables(text, BENCHMARKS, pages()[page])


def test_only_what_is_between_the_comments_is_replaced():
    text = with_tables(f"before\n{BEGIN}old\n{END}after\n", BENCHMARKS, ["round"])
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert with_tables(text, BENCHMARKS, ["round"]) == text
    with pytest.raises(ValueError, match="not enough values"):
        with_tables("no comments", BENCHMARKS, ["round"])


def test_every_benchmark_has_its_table_and_its_page():
    page = (BENCHMARKS / "README.md").read_text()
    for name in MAKERS:
        assert f"({name}.json)" in page
    text = (BENCHMARKS / "summary.md").read_text()
    for shown in ("Flower", "FedAvg", "bytes up", "encrypt and serialise", "true_label", "MiB"):
        assert shown in text
