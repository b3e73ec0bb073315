import pytest

from fedsens.errors import ConfigurationError
from fedsens.mapping._job import bytes_of, rows_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("1B", 1),
        ("8GiB", 8 * 2**30),
        (" 500 MB ", 500 * 10**6),
        ("1.5KiB", 1536),
        ("2TB", 2 * 10**12),
    ],
)
def test_bytes(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "0", "0.0MB", "-1", "8gib", "8 G", "1e9", "8GiB more"])
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(ConfigurationError, match="bytes such as 500MB or 8GiB, got"):
        bytes_of(text)


def test_rows():
    assert rows_of("exact") == "exact"
    assert rows_of("12") == 12
    for text in ("0", "-1", "1.5", "all", "", "²"):
        with pytest.raises(ConfigurationError, match="--rows auto, exact or a number of probes"):
            rows_of(text)
