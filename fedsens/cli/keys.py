"""``fedsens keygen``, ``identity`` and ``roster``: the clients' keys, never the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli.common import PassphraseFile, console, must_be_new, named_errors, passphrase_of


def keygen(
    path: Annotated[Path, typer.Argument(help="The new key file (mode 0600).")],
    preset: Annotated[str, typer.Option(help="compact, balanced or precise.")] = "compact",
    value_range: Annotated[
        float, typer.Option(min=0, help="Range R of the parameters; 0 is the preset's own.")
    ] = 0.0,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Lock the key; asks for a passphrase.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a secret key for all clients. The server must never see this file.

    Beside it lies its public half, NAME.public.json, which the server may have. To rotate keys,
    make several, lay them into one folder on every client and set fedsens.rotate-at on the server.
    """
    from fedsens.crypto import CkksParameters, generate_key
    from fedsens.protocol.keyfile import PublicParameters, save_key

    public = path.with_name(f"{path.stem}.public.json")
    with named_errors():
        must_be_new(path, public)
        parameters = CkksParameters.preset(preset, value_range or None)
        word = (
            passphrase_of(passphrase_file, confirm=True) if passphrase or passphrase_file else None
        )
        key = generate_key(parameters)
        save_key(key, path, word)
        PublicParameters.of(key).save(public)
    locked = "" if word is None else "locked, "
    console.print(
        f"wrote {path} ({locked}mode 0600) and {public}: fingerprint {key.fingerprint}, "
        f"{parameters.security_bits}-bit security",
        soft_wrap=True,
    )


def identity(
    path: Annotated[Path, typer.Argument(help="The client's identity file (mode 0600).")],
) -> None:
    """Print a client's X25519 public key; its identity file is made if there is none.

    For key agreement without provisioned keys: every client makes its identity, names the file as
    fedsens-identity-file, and hands the printed line to whoever writes the roster.
    """
    from fedsens.protocol.roster import load_identity

    with named_errors():
        public = load_identity(path).public_key().public_bytes_raw()
    typer.echo(public.hex())


def roster(
    path: Annotated[Path, typer.Argument(help="The new roster file.")],
    public_keys: Annotated[list[str], typer.Argument(help="What fedsens identity printed.")],
) -> None:
    """Write the roster of all clients that may share a key (fedsens-roster-file)."""
    from fedsens.protocol.envelope import roster_fingerprint
    from fedsens.protocol.roster import write_roster

    with named_errors():
        must_be_new(path)
        keys = write_roster(path, public_keys)
    console.print(
        f"wrote {path}: {len(keys)} clients, fingerprint {roster_fingerprint(keys)}",
        soft_wrap=True,
    )
