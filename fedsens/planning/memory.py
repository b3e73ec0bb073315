"""Memory of server and client, from the size of a federation alone.

Fitted to what ``fedsens bench scale`` measures (which shows both side by side): most of it is
copies of ciphertexts between SEAL, fedsens and Flower.
"""

from __future__ import annotations

LIBRARIES = 275 * 2**20  # bytes of a process that has loaded them
SERVER_PLAIN, SERVER_ENCRYPTED = 24, 27  # bytes for each parameter, and more if it is encrypted
CLIENT_PLAIN, CLIENT_ENCRYPTED = 15, 18
# Freed blocks that a client's allocator keeps: bytes for each parameter, and at most.
KEPT, MOST_KEPT = 40, 110 * 2**20
ANSWER = 4  # bytes of each plaintext parameter of each client, which the inner strategy collects


def server_memory(size: int, count: int, clients: int) -> int:
    """Bytes of the server's process at most.

    Args:
        size: P.
        count: k, how many of them are encrypted.
        clients: that take part in a round.

    Returns:
        The estimate.
    """
    held = SERVER_PLAIN * size + SERVER_ENCRYPTED * count
    return LIBRARIES + held + ANSWER * (size - count) * clients


def client_memory(size: int, count: int) -> int:
    """Bytes of a client's process at most, without what training itself needs.

    Args:
        size: P.
        count: k, how many of them are encrypted.

    Returns:
        The estimate.
    """
    held = CLIENT_PLAIN * size + CLIENT_ENCRYPTED * count
    return LIBRARIES + held + min(MOST_KEPT, KEPT * size)
