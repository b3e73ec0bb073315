"""``fedsens keygen``, ``identity`` and ``roster``: the clients' keys, never the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli.common import PassphraseFile, console, must_be_new, named_errors, passphrase_of


def keygen(
    path: Annotated[Path, typer.Argument(help="The new key file (mode 0600).")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Lock the key; asks for a passphrase.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the key of a federation, for all its clients. The server must never see this file.

    It prints the key's fingerprint, which the server may know (fedsens.fingerprints). To rotate
    keys, make several, lay them into one folder on every client and set fedsens.rotate-at on the
    server.
    """
    from fedsens.keys import FederationKey

    with named_errors():
        must_be_new(path)
        word = (
            passphrase_of(passphrase_file, confirm=True) if passphrase or passphrase_file else None
        )
        key = FederationKey.generate()
        key.save(path, word)
    locked = "" if word is None else "locked, "
    console.print(
        f"wrote {path} ({locked}mode 0600): fingerprint {key.fingerprint}", soft_wrap=True
    )


def identity(
    path: Annotated[Path, typer.Argument(help="The client's identity file (mode 0600).")],
) -> None:
    """Print a client's X25519 public key; its identity file is made if there is none.

    For key agreement without provisioned keys: every client makes its identity, names the file as
    fedsens-identity-file, and hands the printed line to whoever writes the roster.
    """
    from fedsens.keys import load_identity

    with named_errors():
        public = load_identity(path).public_key().public_bytes_raw()
    typer.echo(public.hex())


def roster(
    path: Annotated[Path, typer.Argument(help="The new roster file.")],
    public_keys: Annotated[list[str], typer.Argument(help="What fedsens identity printed.")],
) -> None:
    """Write the roster of all clients that may share a key (fedsens-roster-file)."""
    from fedsens.keys import roster_fingerprint, write_roster

    with named_errors():
        must_be_new(path)
        keys = write_roster(path, public_keys)
    console.print(
        f"wrote {path}: {len(keys)} clients, fingerprint {roster_fingerprint(keys)}",
        soft_wrap=True,
    )
