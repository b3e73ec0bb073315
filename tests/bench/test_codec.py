from dataclasses import FrozenInstanceError

import pytest

from fedsens.bench.codec import FEDML, NVFLARE, PAPER, bench_codec

VALUES = 8192


@pytest.fixture(scope="module")
def rows():
    return {
        row.name: row
        for row in bench_codec(
            VALUES, clients=2, repeats=1, presets=("balanced",), baseline_values=99
        )
    }


def test_one_row_per_codec_with_the_number_of_values_it_measured(rows):
    assert {name: row.values for name, row in rows.items()} == {
        FEDML: 99,
        NVFLARE: 99,
        PAPER: 99,
        "balanced": VALUES,
    }


def test_security_is_the_standards(rows):
    assert [row.security_bits for row in rows.values()] == [128, 192, 128, 256]


def test_errors_are_measured_on_each_kind_of_vector(rows):
    for row in rows.values():
        for error in (row.error_weights, row.error_constant, row.error_spike):
            assert 0 < error < 2e-6


def test_sizes_are_per_value(rows):
    assert rows["balanced"].bytes_up == pytest.approx(5.02, rel=0.01)
    assert rows["balanced"].bytes_down == pytest.approx(10.0, rel=0.01)


def test_ratios_are_to_the_fedml_row_and_above_one_where_better(rows):
    fedml, ours = rows[FEDML], rows["balanced"]
    assert set(fedml.vs_fedml.values()) == {1.0}
    assert ours.vs_fedml["decrypt"] == ours.decrypt / fedml.decrypt
    assert ours.vs_fedml["bytes_up"] == fedml.bytes_up / ours.bytes_up > 1


def test_rows_are_frozen(rows):
    with pytest.raises(FrozenInstanceError):
        rows[FEDML].values = 1
