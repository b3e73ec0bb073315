"""What a client keeps to itself: its key, its identities, its settings and its records.

The server's process loads nothing of this package.
"""

from fedsens.keys._file import LOCKED_TYPE, locked_key_in, read_passphrase
from fedsens.keys._identity import (
    load_identity,
    read_roster,
    roster_fingerprint,
    seal,
    unseal,
    write_roster,
)
from fedsens.keys._key import KEY_TYPE, FederationKey
from fedsens.keys._opening import open_aggregate, open_model, rekey
from fedsens.keys._pads import key_answer
from fedsens.keys._records import MOVED, PendingUpload, UploadRecords
from fedsens.keys._settings import ClientSettings
from fedsens.keys._store import KeyStore
from fedsens.keys._tags import certify_mask, make_tags

__all__ = [
    "KEY_TYPE",
    "LOCKED_TYPE",
    "MOVED",
    "ClientSettings",
    "FederationKey",
    "KeyStore",
    "PendingUpload",
    "UploadRecords",
    "certify_mask",
    "key_answer",
    "load_identity",
    "locked_key_in",
    "make_tags",
    "open_aggregate",
    "open_model",
    "read_passphrase",
    "read_roster",
    "rekey",
    "roster_fingerprint",
    "seal",
    "unseal",
    "write_roster",
]
