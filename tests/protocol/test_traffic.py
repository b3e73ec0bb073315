"""The largest ratio within a budget of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.mask import mask_count
from fedsens.protocol.traffic import ratio_within, traffic

presets = st.sampled_from(["compact", "balanced", "precise"]).map(CkksParameters.preset)


@given(
    codec=presets,
    size=st.integers(1, 500_000),
    megabytes=st.floats(1e-3, 10),
    withheld=st.booleans(),
)
def test_the_ratio_keeps_the_budget_and_one_more_block_would_not(codec, size, megabytes, withheld):
    def bytes_of(count):
        return sum(traffic(codec, size, count, withheld))

    try:
        ratio = ratio_within(codec, size, megabytes, withheld)
    except ConfigurationError:
        assert bytes_of(min(size, codec.degree)) > 1e6 * megabytes
        return
    count = mask_count(ratio, size)
    assert count > 0
    assert bytes_of(count) <= 1e6 * megabytes
    more = count + codec.degree
    assert count == size or bytes_of(min(size, more)) > 1e6 * megabytes


def test_a_budget_for_plaintext_alone_is_refused_not_kept_without_encryption():
    codec, size = CkksParameters.preset("compact"), 100_000
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
