"""The codec's figures as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fedsens.bench.codec import CodecRow

SPEEDS = {"encrypt, serialise": "encrypt", "load": "load", "add": "add", "decrypt": "decrypt"}
ERRORS = {
    "error, rms 0.05": "error_weights",
    "error, constant 1": "error_constant",
    "error, spike 100": "error_spike",
}


def codec_table(rows: Sequence[CodecRow]) -> Table:
    """One column per codec.

    Args:
        rows: what :func:`fedsens.bench.codec.bench_codec` measured.

    Returns:
        The table.
    """
    table = Table(
        title="The codec beside TenSEAL's CKKSVector: millions of values per CPU second",
        caption="Errors: the largest, of a 10-client mean.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for row in rows:
        table.add_column(row.name.split(" ", 1)[0], justify="right", no_wrap=True)
    for label, name in SPEEDS.items():
        table.add_row(label, *(f"{getattr(row, name):.1f}" for row in rows))
        table.add_row("  times FedML's", *(f"{row.vs_fedml[name]:.1f}x" for row in rows))
    for label, name in (("bytes up", "bytes_up"), ("bytes down", "bytes_down")):
        table.add_row(label, *(f"{getattr(row, name):.2f}" for row in rows))
    table.add_row("security, bits", *(str(row.security_bits) for row in rows))
    for label, name in ERRORS.items():
        table.add_row(label, *(f"{getattr(row, name):.0e}" for row in rows))
    return table
