"""Error feedback: what an answer leaves out is added to the next one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsens.mask import EncryptionMask

Flat = NDArray[np.floating]


def feed_back(
    received: Flat, trained: Flat, residual: Flat, mask: EncryptionMask
) -> tuple[Flat, Flat]:
    """Split an update with what was left out before (Seide et al. 2014; Stich et al. 2018).

    With u = trained - received, the masked coordinates of received + u + residual are sent and the
    others of u + residual are kept. So the sum of what was sent and kept is the sum of all updates.
    If an answer is lost on its way, what it carried is lost with it, as in plain federated
    learning; what is kept is not.

    Args:
        received: the model that came, of length P.
        trained: what became of it.
        residual: what earlier answers left out.
        mask: the coordinates to send.

    Returns:
        The k values to send, and the new residual, of length P and 0 where the mask is.
    """
    whole = trained + residual
    return whole[mask.selected], np.where(mask.selected, whole.dtype.type(0), whole - received)
