"""One self-contained HTML page: no scripts, no addresses, pictures inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #d0d4da; --soft: #f4f6f8; --accent: #4c78a8; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #1f242b; --accent: #8ab4e0; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { border-bottom: 2px solid var(--accent); margin-top: 3rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p.note, figcaption { font-size: .85rem; opacity: .75; }
nav a { margin-right: 1rem; } a { color: var(--accent); }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.card { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; }
.card b { display: block; font-size: 1.5rem; overflow-wrap: anywhere; }
.card span { font-size: .85rem; opacity: .75; }
figure { margin: 1rem 0; } .wide { overflow-x: auto; } img { background: #fff; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left; }
th.right, td.right { text-align: right; white-space: nowrap; }
table.many { font-size: .75rem; } table.many th.right { white-space: normal; }
table.many th, table.many td { padding-right: .4rem; }
p.end { border-left: 4px solid var(--accent); font-weight: 600; padding-left: .75rem; }
details { margin: 1rem 0; } summary { cursor: pointer; }
"""


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Key figures side by side, each a value and what it is, as HTML."""
    each = (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in figures
    )
    return f'<div class="cards">{"".join(each)}</div>\n'


def picture(path: Path, text: str) -> str:
    """A PNG file, inside the page.

    Args:
        path: the file.
        text: what it shows, for those who cannot see it.

    Returns:
        HTML.
    """
    data = b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>\n"
    )


def folded(title: str, content: str, unfolded: bool = False) -> str:
    """HTML that is shown on demand, or folded away."""
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(title)}</summary>{content}</details>\n"


def small_print(text: str) -> str:
    """A line in small print; nothing for no text."""
    return f'<p class="note">{escape(text)}</p>\n' if text else ""


def conclusion(text: str) -> str:
    """What a section says in the end, set apart; nothing for no text."""
    return f'<p class="end">{escape(text)}</p>\n' if text else ""


def page(title: str, note: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        title: of the page.
        note: below it.
        sections: titles and HTML.

    Returns:
        A whole document.
    """
    links = "".join(
        f'<a href="#part-{number}">{escape(name)}</a>' for number, (name, _) in enumerate(sections)
    )
    body = "".join(
        f'<section id="part-{number}"><h2>{escape(name)}</h2>\n{content}</section>\n'
        for number, (name, content) in enumerate(sections)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{small_print(note)}"
        f"<nav>{links if len(sections) > 1 else ''}</nav>\n{body}</body></html>\n"
    )
