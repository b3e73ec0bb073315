"""``fedsens open`` and ``fedsens inspect``: what is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli.common import (
    JsonFile,
    PassphraseFile,
    console,
    must_be_new,
    named_errors,
    passphrase_of,
    write_json,
)
from fedsens.errors import ConfigurationError


def open_file(
    model: Annotated[Path, typer.Argument(help="Protected model or checkpoint (safetensors).")],
    key: Annotated[Path, typer.Option(help="The clients' key file.")],
    out: Annotated[Path, typer.Option(help="The opened state dict, a new .safetensors file.")],
    passphrase_file: PassphraseFile = None,
    min_contributors: Annotated[
        int, typer.Option(min=1, help="Fewest clients whose updates must be in the model.")
    ] = 2,
) -> None:
    """Open a protected model into an ordinary safetensors state dict."""
    from fedsens.cli.inspect import load_model
    from fedsens.files import digest_of
    from fedsens.keys import FederationKey, open_model
    from fedsens.protocol import save_model

    with named_errors():
        if out.suffix not in ("", ".safetensors"):
            raise ConfigurationError(
                f"expected a name that ends in .safetensors, which is what is written, got {out}"
            )
        must_be_new(out)
        protected = load_model(model)
        secret = FederationKey.load(key, lambda: passphrase_of(passphrase_file))
        arrays = open_model(protected, secret, min_contributors)
        save_model(arrays, out)
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
    from fedsens.cli.inspect import describe

    with named_errors():
        facts = describe(file)
    for name, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        console.print(f"{name.replace('_', ' ')}: {shown}", soft_wrap=True, markup=False)
    write_json(json_file, facts)
