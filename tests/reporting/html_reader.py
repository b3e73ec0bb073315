"""Reads HTML as a browser would, and texts that try to be more than texts."""

from html.parser import HTMLParser

HOSTILE = "<script>alert('x')</script> & |pipe|"
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects what a browser would: tags that stay open, texts of tables, addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells[-1] += data
