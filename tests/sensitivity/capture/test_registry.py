"""Samples are found on whatever axis they are, and brought to the front."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsens.sensitivity._tolerance import Uncovered
from fedsens.sensitivity.capture._registry import SampleAxis, candidates


@given(
    before=st.integers(0, 2),
    after=st.integers(0, 2),
    samples=st.integers(2, 4),
    merged=st.integers(1, 3),
    last=st.booleans(),
)
def test_samples_come_to_the_front(before, after, samples, merged, last):
    order = (merged, samples) if last else (samples, merged)
    shape = (2,) * before + (samples * merged,) + (3,) * after
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    axis = SampleAxis(before, last)
    first = axis.first(tensor, samples)
    assert first.shape == (samples, *(2,) * before, merged, *(3,) * after)
    split = tensor.view(*(2,) * before, *order, *(3,) * after)
    for k in range(samples):
        torch.testing.assert_close(first[k], split.select(before + last, k))
    factors = torch.arange(1.0, samples + 1).double()
    scaled = tensor.double().clone()
    axis.first(scaled, samples).mul_(factors.view(-1, *(1,) * len(shape)))
    assert axis.holds(tensor.double(), scaled, factors)
    assert not axis.holds(tensor.double(), scaled, factors.flip(0))


def test_a_tensor_without_room_for_the_samples_is_named():
    for shape in ((7,), ()):
        with pytest.raises(Uncovered, match="no room for 3 samples"):
            SampleAxis(0).first(torch.zeros(shape), 3)


def test_every_axis_with_room_is_a_candidate():
    assert list(candidates((6, 3, 4), 3)) == [
        SampleAxis(0),
        SampleAxis(0, last=True),
        SampleAxis(1),
    ]
    assert list(candidates((5,), 3)) == []
    assert list(candidates((2,), 1)) == [SampleAxis(0)]
