"""Reports of phases, and the largest ratio within a budget of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.crypto import PRESETS, CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import mask_count
from fedsens.protocol import (
    KEY_BYTES,
    PhaseReport,
    ReportFile,
    mean_width,
    ratio_within,
    read_reports,
    traffic,
)

REPORTS = [
    PhaseReport(
        phase="train", round=1, clients=3, lost=1, reasons={7: "away"}, bytes_up_plain=1200
    ),
    PhaseReport(phase="evaluate", round=1, clients=4, metrics={"loss": float("nan")}),
]


def test_report_files_leave_out_a_line_that_is_being_written(tmp_path):
    path = tmp_path / "new" / "reports.jsonl"
    file = ReportFile(path)
    for report in REPORTS:
        file.append(report)
    with path.open("a") as half:
        half.write('{"phase": "tra')
    assert [str(each) for each in read_reports(path)] == [str(each) for each in REPORTS]
    assert read_reports(path)[0] == REPORTS[0]
    assert read_reports(tmp_path / "absent") == []


def test_a_new_file_drops_what_an_earlier_run_left(tmp_path):
    ReportFile(tmp_path / "r").append(REPORTS[0])
    ReportFile(tmp_path / "r")
    assert read_reports(tmp_path / "r") == []


def test_a_report_is_one_line_with_its_figures():
    text = str(REPORTS[0])
    assert "\n" not in text
    assert text.startswith("round 1 train: 3 clients, 1 lost, up 1,200 + 0 B")


presets = st.sampled_from(list(PRESETS)).map(CkksParameters.preset)


@given(
    codec=presets,
    size=st.integers(1, 500_000),
    megabytes=st.floats(1e-3, 10),
    withheld=st.booleans(),
    width=st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    clients=st.integers(1, 200),
)
def test_the_ratio_keeps_the_budget_and_one_more_block_would_not(
    codec, size, megabytes, withheld, width, clients
):
    options = {"withheld": withheld, "width": width, "clients": clients}

    def bytes_of(count):
        return sum(traffic(codec, size, count, **options))

    try:
        ratio = ratio_within(codec, size, megabytes, **options)
    except ConfigurationError:
        assert bytes_of(size) > 1e6 * megabytes
        assert bytes_of(min(size, codec.degree)) > 1e6 * megabytes
        return
    count = mask_count(ratio, size)
    assert count > 0
    assert bytes_of(count) <= 1e6 * megabytes
    assert count == size or bytes_of(size) > 1e6 * megabytes
    more = count + codec.degree
    assert count == size or bytes_of(min(size, more)) > 1e6 * megabytes


def test_a_budget_for_plaintext_alone_is_refused_not_kept_without_encryption():
    codec, size = CkksParameters.preset("compact"), 4096
    plain = sum(traffic(codec, size, 0)) / 1e6
    with pytest.raises(ConfigurationError, match="room for one ciphertext"):
        ratio_within(codec, size, plain)
    with pytest.raises(ConfigurationError, match="a budget in which plaintext fits"):
        ratio_within(codec, size, plain - 0.01)


def test_a_withheld_remainder_goes_down_but_not_up():
    codec, size, count = CkksParameters.preset("compact"), 100_000, 8192
    up, down = traffic(codec, size, count, withheld=True)
    sent_up, sent_down = traffic(codec, size, count)
    assert sent_up - up == 4 * (size - count)
    assert down == sent_down


@given(codec=presets, size=st.integers(1, 100_000), clients=st.integers(1, 100))
def test_encryption_costs_whole_blocks_one_key_each_way_and_the_lists(codec, size, clients):
    (up, down), (plain_up, plain_down) = (
        traffic(codec, size, count, width=4, clients=clients) for count in (size, 0)
    )
    residues = codec.wire_bytes * codec.degree * -(-size // codec.degree)
    assert up - plain_up == residues + KEY_BYTES - 4 * size
    assert down - plain_down == pytest.approx(residues + KEY_BYTES - 4 * size + 300 * clients)


def test_the_width_is_the_mean_over_the_real_types():
    shapes = [("a", (6,), "float32"), ("b", (2,), "float16"), ("c", (5,), "int64")]
    assert mean_width(ParameterLayout.from_shapes(shapes)) == (6 * 4 + 2 * 2) / 8
    assert mean_width(ParameterLayout.from_shapes([])) == 4
