"""Tables of figures: on a terminal, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from rich import box
from rich.table import Table
from rich.text import Text

MANY = 9  # columns; a page sets more of them small, so that they fit


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    caption: str | None = None,
    left: Collection[int] = (0,),
    wrapping: Collection[int] = (),
) -> Table:
    """Lay figures out as a table with numbers to the right, as every command shows them.

    A row without any cell draws a line. ``left`` and ``wrapping`` are the numbers of the columns
    that hold text and begin at the left, and that may be broken over several lines; numbers never
    are.
    """
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number in left else "right",
            no_wrap=number not in wrapping,
        )
    for row in rows:
        table.add_row(*row) if row else table.add_section()
    return table


def to_html(table: Table) -> str:
    """A table as an HTML ``figure``, title and caption included."""
    header, *rows = _cells(table)
    aligned = [column.justify == "right" for column in table.columns]
    head = "".join(_cell("th", cell, right) for cell, right in zip(header, aligned, strict=True))
    body = "".join(
        "<tr>"
        + "".join(_cell("td", cell, right) for cell, right in zip(row, aligned, strict=True))
        + "</tr>\n"
        for row in rows
    )
    many = ' class="many"' if len(header) > MANY else ""
    title = f"<h3>{escape(_plain(table.title))}</h3>\n" if table.title else ""
    note = f"<figcaption>{escape(_plain(table.caption))}</figcaption>" if table.caption else ""
    return (
        f'{title}<figure><div class="wide"><table{many}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{note}</figure>\n"
    )


def to_markdown(table: Table) -> str:
    """A table as lines of Markdown, title and caption included."""
    header, *rows = _cells(table)
    rules = ["--:" if column.justify == "right" else "---" for column in table.columns]
    lines = [f"| {' | '.join(_flat(cell) for cell in row)} |" for row in (header, rules, *rows)]
    title = [f"**{_plain(table.title)}**", ""] if table.title else []
    note = ["", f"*{_plain(table.caption)}*"] if table.caption else []
    return "\n".join([*title, *lines, *note]) + "\n"


def _cells(table: Table) -> list[list[str]]:
    columns = [[column.header, *column.cells] for column in table.columns]
    return [[_plain(cell) for cell in row] for row in zip(*columns, strict=True)]


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _flat(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|")


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="right"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
