"""A page is one document that loads nothing from elsewhere."""

from fedsens.reporting._page import cards, folded, page, picture, small_print

from .html_reader import HOSTILE, Reader


def test_a_page_is_one_document_without_scripts_or_addresses():
    read = Reader(page(HOSTILE, "note", [("One & two", cards([("1", HOSTILE)])), (HOSTILE, "")]))
    assert read.open == []
    assert read.addresses == ["#part-0", "#part-1"]
    assert not {"script", "link", "iframe"} & set(read.tags)


def test_whatever_a_text_says_stays_a_text(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    for part in (
        cards([(HOSTILE, HOSTILE)]),
        picture(tmp_path / "a.png", HOSTILE),
        folded(HOSTILE, ""),
        small_print(HOSTILE),
    ):
        read = Reader(part)
        assert read.open == []
        assert "script" not in read.tags
    assert small_print("") == ""
