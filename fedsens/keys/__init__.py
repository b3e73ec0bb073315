"""What a client keeps to itself: its key, its identities, its settings and its records.

The server's process loads nothing of this package.
"""

from fedsens.keys._envelope import roster_fingerprint, seal, unseal
from fedsens.keys._file import LOCKED_TYPE, LockedKey, locked_key_in, read_passphrase
from fedsens.keys._key import KEY_TYPE, FederationKey
from fedsens.keys._records import PendingUpload, RunRecord, UploadRecords
from fedsens.keys._roster import load_identity, read_roster, write_roster
from fedsens.keys._settings import LOG_FORMAT, OUTPUT_DIR, ClientSettings, Remainder
from fedsens.keys._store import KeyStore

__all__ = [
    "KEY_TYPE",
    "LOCKED_TYPE",
    "LOG_FORMAT",
    "OUTPUT_DIR",
    "ClientSettings",
    "FederationKey",
    "KeyStore",
    "LockedKey",
    "PendingUpload",
    "Remainder",
    "RunRecord",
    "UploadRecords",
    "load_identity",
    "locked_key_in",
    "read_passphrase",
    "read_roster",
    "roster_fingerprint",
    "seal",
    "unseal",
    "write_roster",
]
