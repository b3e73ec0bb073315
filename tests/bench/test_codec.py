from dataclasses import FrozenInstanceError, replace

import pytest
from rich.console import Console

from fedsens.bench._codec import bench_codec, measure_codecs, preset_codec
from fedsens.bench._tables import codec_table, three_digits
from fedsens.crypto import PRESETS, CkksParameters

VALUES = 8192


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in bench_codec(VALUES, clients=2, repeats=1)}


def test_every_preset_has_a_row(rows):
    assert list(rows) == list(PRESETS)
    assert {row.values for row in rows.values()} == {VALUES}
    assert {row.security_bits for row in rows.values()} == {256}


def test_errors_are_measured_on_each_kind_of_vector_and_within_what_is_stated(rows):
    for name, row in rows.items():
        assert set(row.rms) == set(row.largest) == {"weights", "constant", "spike", "full"}
        assert row.bound == CkksParameters.preset(name).error_bound(2)
        for kind, rms in row.rms.items():
            assert 0 < rms < 1.1 * row.stated_rms
            assert rms < row.largest[kind] < row.bound


def test_sizes_are_per_value(rows):
    for name, preset in PRESETS.items():
        assert rows[name].bytes_up == pytest.approx(preset.bytes, rel=0.01)
        assert rows[name].bytes_down == rows[name].bytes_up


def test_the_path_is_one_client_and_the_server_for_eight(rows):
    for row in rows.values():
        assert 1 / row.path == pytest.approx(1 / row.encrypt + 8 / row.add + 1 / row.decrypt)


def test_a_codec_that_is_no_preset_states_nothing():
    (row,) = measure_codecs({"mine": (preset_codec("tiny"), 4096)}, clients=1, repeats=1)
    assert (row.stated_rms, row.bound) == (None, None)


def test_rows_are_frozen(rows):
    with pytest.raises(FrozenInstanceError):
        rows["tiny"].values = 1


def shown(rows, reference=None):
    console = Console(record=True, width=80)
    console.print(codec_table(rows, reference))
    return console.export_text()


def test_the_table_of_the_presets_has_their_figures(rows):
    text = shown(list(rows.values()))
    assert three_digits(rows["precise"].encrypt) in text
    assert f"{rows['precise'].bound:.0e}" in text
    assert "times" not in text


def test_the_table_beside_others_fits_eighty_columns(rows):
    fedml = replace(rows["tiny"], name="FedML CKKSVector", bound=None)
    others = [fedml, replace(fedml, name="NVFlare CKKSVector"), replace(fedml, name="Paper C")]
    text = shown([*others, *rows.values()], fedml)
    assert "1.0x" in text
    assert "…" not in text
