"""What becomes of the plaintext remainder of a client's update.

The server asks for a policy in the :class:`RemainderTerms` of every model it sends: ``plain``,
``noised`` or ``withheld``. Each policy is one class with the client's and the server's half.
"""

import fedsens.remainder._withheld  # noqa: F401 - which registers its policy
from fedsens.remainder._account import DELTA, Account, PrivacyLoss
from fedsens.remainder._central import CentralPrivacy, epsilon_of
from fedsens.remainder._noised import LEAST_SCALE, add_noise
from fedsens.remainder._terms import (
    Distribution,
    Experiment,
    Remainder,
    RemainderTerms,
    policy_named,
)

__all__ = [
    "DELTA",
    "LEAST_SCALE",
    "Account",
    "CentralPrivacy",
    "Distribution",
    "Experiment",
    "PrivacyLoss",
    "Remainder",
    "RemainderTerms",
    "add_noise",
    "epsilon_of",
    "policy_named",
]
