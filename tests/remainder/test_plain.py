"""A plain remainder leaves as it is, and nothing is kept."""

import numpy as np

from fedsens.mask import combine

from .test_terms import AFTER, LAYOUT, files, folder, mask_of, policy, protect

__all__ = ["folder"]  # the fixture


def test_what_leaves_is_the_model(folder):
    for mask in (mask_of(), mask_of(1, 4, 5), mask_of(*range(LAYOUT.size))):
        leaving = protect(policy("plain"), folder, mask, before=None)
        whole = combine(leaving.plain, leaving.masked, LAYOUT, mask)
        assert all(np.array_equal(whole[name], AFTER[name]) for name in AFTER)
        leaving.commit()
    assert files(folder) == set()
    assert policy("plain").cost() is None
