from rich.console import Console

from fedsens.bench.codec import CodecRow
from fedsens.bench.screen import codec_table


def shown(table):
    console = Console(record=True, width=80)
    console.print(table)
    return console.export_text()


def test_the_codec_table_fits_eighty_columns():
    ratios = dict.fromkeys(("encrypt", "load", "add", "decrypt", "bytes_up", "bytes_down"), 12.3)
    rows = [
        CodecRow(name, 1, 128, 0.7, 5.0, 200.0, 12.0, 4.2, 8.3, 1e-7, 2e-7, 3e-7, ratios)
        for name in (
            "FedML CKKSVector",
            "NVFlare CKKSVector",
            "Paper CKKSVector",
            "compact",
            "balanced",
            "precise",
        )
    ]
    text = shown(codec_table(rows))
    assert "200.0" in text
    assert "12.3x" in text
    assert "…" not in text
