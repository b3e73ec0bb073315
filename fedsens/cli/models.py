"""``fedsens open`` and ``fedsens inspect``: what is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens.cli.common import (
    JsonFile,
    PassphraseFile,
    console,
    named_errors,
    passphrase_of,
    write_json,
)

if TYPE_CHECKING:
    from fedsens.crypto import SecretKey
    from fedsens.files import Arrays
    from fedsens.protocol.model import ProtectedModel

UNFLOODED = (
    "no noise was added: who has ciphertexts and many decrypted models can compute the key; before "
    "you publish one, see --security-bits"
)


def open_model(
    model: Annotated[Path, typer.Argument(help="Protected model or checkpoint (safetensors).")],
    key: Annotated[Path, typer.Option(help="The clients' key file.")],
    out: Annotated[Path, typer.Option(help="Where to write the opened state dict.")],
    passphrase_file: PassphraseFile = None,
    security_bits: Annotated[
        int,
        typer.Option(
            min=0, max=128, help="Statistical security of noise for publication; 0 adds none."
        ),
    ] = 0,
    decryptions: Annotated[
        int, typer.Option(min=1, help="Decryptions under this key that are ever published.")
    ] = 1,
    accept_noise: Annotated[
        bool, typer.Option(help="Write the model even where the noise is large.")
    ] = False,
    min_contributors: Annotated[
        int, typer.Option(min=1, help="Fewest clients whose updates must be in the model.")
    ] = 2,
) -> None:
    """Open a protected model into an ordinary safetensors state dict."""
    from fedsens.files import digest_of
    from fedsens.protocol.describe import load_model
    from fedsens.protocol.export import save_model
    from fedsens.protocol.keyfile import load_key

    with named_errors():
        protected = load_model(model)
        secret = load_key(key, lambda: passphrase_of(passphrase_file))
        if protected.ciphertext is None:
            arrays, note = protected.open(secret, min_contributors), ""
        elif security_bits:
            arrays, note = _flooded(
                protected, secret, min_contributors, security_bits, decryptions, accept_noise
            )
        else:
            arrays, note = protected.open(secret, min_contributors), UNFLOODED
        save_model(arrays, out)
    console.print(
        f"wrote {out}: {protected.layout.size:,} parameters of round {protected.round}, "
        f"{protected.mask.k:,} of them decrypted; sha256 {digest_of(arrays)}",
        soft_wrap=True,
    )
    if note:
        console.print(note, soft_wrap=True)


def _flooded(
    model: ProtectedModel,
    key: SecretKey,
    min_contributors: int,
    security_bits: int,
    decryptions: int,
    accept: bool,
) -> tuple[Arrays, str]:
    """The opened model with noise on its decrypted values, and what to say about it."""
    from fedsens.protocol.flooding import Flooding, flood

    flooding = Flooding(security_bits=security_bits, decryptions=decryptions, accept=accept)
    noisy = flood(model.decrypt(key, min_contributors), model, flooding)
    return model.opened(noisy.values), (
        f"added noise of standard deviation {noisy.deviation:.3g} ({noisy.share:.2g} of the "
        f"decrypted values' root mean square) for {security_bits} bits and {decryptions} published "
        "decryptions under this key"
    )


def inspect(
    file: Annotated[
        Path, typer.Argument(help="Key, public parameters, model, checkpoint, roster or summary.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Say what a file of fedsens is: parameters, security level and digests, never a secret."""
    from fedsens.protocol.describe import describe

    with named_errors():
        facts = describe(file)
    for name, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        console.print(f"{name.replace('_', ' ')}: {shown}", soft_wrap=True, markup=False)
    write_json(json_file, facts)
