"""The page of all benchmarks."""

from fedsens.cli import measure
from fedsens.reporting.benchmarks import SECTIONS, benchmark_page


def test_the_page_has_the_tables_that_the_terminal_shows():
    result = measure.codec(4096, 1)
    page = benchmark_page({"codec": result.tables})
    assert page.startswith("# Benchmarks\n")
    assert "## The codec\n\n`fedsens bench codec`, figures in [codec.json](codec.json)" in page
    for row in result.content:
        assert f"{row['bytes_up']:.2f}" in page
    assert "torch 2." in page


def test_every_benchmark_has_a_section():
    assert set(SECTIONS) == {"codec", "round", "scale", "map"}
