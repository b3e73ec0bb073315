"""Tables as HTML and Markdown keep their cells, whatever these say."""

from rich.table import Table

from fedsens._tables import make_table, to_html, to_markdown
from tests.reporting.html_reader import HOSTILE, Reader


def sample():
    table = Table(title="A [bold]title[/]", caption=HOSTILE)
    table.add_column("name")
    table.add_column("value", justify="right")
    table.add_row(HOSTILE, "1")
    table.add_row("b", "2")
    return table


def test_a_table_keeps_its_cells_whatever_they_say():
    read = Reader(to_html(sample()))
    assert read.cells == ["name", "value", HOSTILE, "1", "b", "2"]
    assert read.open == []
    assert "script" not in read.tags


def test_a_table_in_markdown():
    lines = to_markdown(sample()).splitlines()
    assert lines[:2] == ["**A title**", ""]
    assert lines[2:5] == [
        "| name | value |",
        "| --- | --: |",
        "| <script>alert('x')</script> & \\|pipe\\| | 1 |",
    ]


def test_many_columns_are_set_small():
    for count, small in ((9, False), (10, True)):
        assert ('class="many"' in to_html(make_table(["a"] * count, []))) == small


def test_numbers_are_to_the_right_and_a_row_without_cells_is_a_line():
    table = make_table(("name", "n"), [("a", "1"), (), ("b", "22")], title="t", caption="c")
    assert [column.justify for column in table.columns] == ["left", "right"]
    assert table.row_count == 2
    assert [row.end_section for row in table.rows] == [True, False]
