"""``fedsens open``, ``inspect``, ``keygen``, ``identity``, ``roster``: models and keys in files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli._common import (
    JsonFile,
    PassphraseFile,
    console,
    must_be_new,
    named_errors,
    passphrase_of,
    write_json,
)
from fedsens.errors import ConfigurationError
from fedsens.protocol import LEAST_CONTRIBUTORS


def open_file(
    model: Annotated[Path, typer.Argument(help="Protected model or checkpoint (safetensors).")],
    out: Annotated[Path, typer.Option(help="The opened state dict, a new .safetensors file.")],
    key: Annotated[
        Path | None, typer.Option(help="The clients' key file, where something is encrypted.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="A PEFT adapter's folder; --out is then one, with what was trained."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    min_contributors: Annotated[
        int, typer.Option(min=1, help="Fewest clients whose updates must be in the model.")
    ] = LEAST_CONTRIBUTORS,
) -> None:
    """Open a protected model into an ordinary safetensors state dict, or a PEFT adapter."""
    from fedsens._files import digest_of
    from fedsens.cli._inspect import (
        check_fits,
        load_key,
        load_model,
        read_adapter,
        write_adapter,
    )
    from fedsens.keys import open_model
    from fedsens.protocol import save_model

    with named_errors():
        if adapter is None and out.suffix not in ("", ".safetensors"):
            raise ConfigurationError(
                f"expected a name that ends in .safetensors, which is what is written, got {out}"
            )
        must_be_new(out)
        like = None if adapter is None else read_adapter(adapter)
        protected = load_model(model)
        secret = None if key is None else load_key(key, partial(passphrase_of, passphrase_file))
        check_fits(protected, secret, key, min_contributors)
        arrays = open_model(protected, secret, min_contributors)
        if like is None:
            save_model(arrays, out)
        else:
            write_adapter(arrays, *like, out)
    console.print(
        f"wrote {out}: {protected.layout.size:,} parameters of round {protected.round}, "
        f"{protected.mask.k:,} of them decrypted; sha256 {digest_of(arrays)}",
        soft_wrap=True,
    )


def inspect(
    file: Annotated[
        Path, typer.Argument(help="Key, identity, model, checkpoint, map, roster or summary.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Say what a file of fedsens is: parameters, security level and digests, never a secret."""
    from fedsens.cli._inspect import describe

    with named_errors():
        facts = describe(file)
    for name, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        console.print(f"{name.replace('_', ' ')}: {shown}", soft_wrap=True, markup=False)
    write_json(json_file, facts)


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
