"""Masks: which coordinates of a model are encrypted, how they are chosen, and both parts of it.

A mask is made by :func:`select_mask`, which asks a policy (:func:`register_policy`) after it has
dealt with forced layers and tied tensors. :func:`partition` and :func:`combine` apply a mask to a
model.
"""

from fedsens._topk import mask_count, top_k
from fedsens.mask import _policies
from fedsens.mask._layers import visible_statistics
from fedsens.mask._mask import EncryptionMask
from fedsens.mask._partition import (
    as_layout_types,
    check_plain,
    combine,
    not_finite,
    partition,
    with_nan,
)
from fedsens.mask._policies import PolicyInput, get_policy, register_policy
from fedsens.mask._select import select_mask
from fedsens.mask._tied import selectable_count, tied_but_masked_apart, tied_pairs

del _policies  # imported only to register the policies that fedsens brings

__all__ = [
    "EncryptionMask",
    "PolicyInput",
    "as_layout_types",
    "check_plain",
    "combine",
    "get_policy",
    "mask_count",
    "not_finite",
    "partition",
    "register_policy",
    "select_mask",
    "selectable_count",
    "tied_but_masked_apart",
    "tied_pairs",
    "top_k",
    "visible_statistics",
    "with_nan",
]
