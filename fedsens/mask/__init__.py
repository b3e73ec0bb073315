"""Masks: which coordinates of a model are encrypted, and how they are chosen."""

from fedsens.mask import ordered as _ordered
from fedsens.mask import policies as _policies
from fedsens.mask.mask import EncryptionMask
from fedsens.mask.registry import Policy, PolicyInput, get_policy, policy_names, register_policy
from fedsens.mask.select import select_mask
from fedsens.topk import mask_count, top_k

del _ordered, _policies  # imported only to register the policies that fedsens brings

__all__ = [
    "EncryptionMask",
    "Policy",
    "PolicyInput",
    "get_policy",
    "mask_count",
    "policy_names",
    "register_policy",
    "select_mask",
    "top_k",
]
