"""What becomes of the plaintext remainder of a client's update.

The server asks for a policy in the :class:`RemainderTerms` of every model it sends.
:class:`Plain`, :class:`Noised` and :class:`Withheld` are the policies, each with the client's and
the server's half; another one is another subclass of :class:`RemainderPolicy`.
"""

from fedsens.remainder._account import DELTA, Account, PrivacyLoss
from fedsens.remainder._central import CentralPrivacy, epsilon_of
from fedsens.remainder._noised import LEAST_SCALE, Noised, add_noise
from fedsens.remainder._terms import (
    Distribution,
    Experiment,
    Leaving,
    Plain,
    Remainder,
    RemainderPolicy,
    RemainderTerms,
    policy_named,
    register_remainder,
)
from fedsens.remainder._withheld import Withheld

__all__ = [
    "DELTA",
    "LEAST_SCALE",
    "Account",
    "CentralPrivacy",
    "Distribution",
    "Experiment",
    "Leaving",
    "Noised",
    "Plain",
    "PrivacyLoss",
    "Remainder",
    "RemainderPolicy",
    "RemainderTerms",
    "Withheld",
    "add_noise",
    "epsilon_of",
    "policy_named",
    "register_remainder",
]
