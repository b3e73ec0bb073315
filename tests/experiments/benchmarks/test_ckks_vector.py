"""The codec beside TenSEAL's CKKSVector."""

import json

import numpy as np
import pytest

from experiments.benchmarks.ckks_vector import (
    FEDML,
    NVFLARE,
    PAPER,
    VectorCodec,
    compare_codecs,
    content_of,
    times_fedml,
)
from experiments.benchmarks.readme import codec
from fedsens.bench._tables import three_digits
from fedsens.crypto import PRESETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in compare_codecs(4096, clients=1, repeats=1, vector_values=99)}


def test_one_row_per_codec_with_the_number_of_values_it_measured(rows):
    assert list(rows) == [FEDML, NVFLARE, PAPER, *PRESETS]
    assert [row.values for row in rows.values()] == [99] * 3 + [4096] * 4


def test_security_is_the_standards(rows):
    assert [row.security_bits for row in rows.values()] == [128, 192, 128] + [256] * 4


def test_ratios_are_to_fedmls_row_and_above_one_where_better(rows):
    fedml, ours = rows[FEDML], rows["precise"]
    assert set(times_fedml(fedml, fedml).values()) == {1.0}
    assert times_fedml(ours, fedml)["decrypt"] == ours.decrypt / fedml.decrypt
    assert times_fedml(ours, fedml)["bytes_up"] == fedml.bytes_up / ours.bytes_up > 1


def test_vectors_add_up():
    vectors, values = VectorCodec((60, 40, 40), symmetric=True), np.arange(5000) / 5000
    total = vectors.start()
    for _ in range(3):
        vectors.add(total, vectors.encrypt(values))
    assert np.abs(vectors.decrypt(vectors.finish(total)) - 3 * values).max() < 1e-5


def test_the_readmes_table_has_every_figure(rows):
    content = json.loads(json.dumps(content_of(list(rows.values()))))
    text = codec(content)
    assert "| precise (default) |" in text
    for row in content:
        assert three_digits(row["encrypt"]) in text
    assert f"({three_digits(content[-1]['times FedML']['path'])}x)" in text
