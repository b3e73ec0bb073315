"""Aggregator: the server's half. It adds ciphertexts and has no way to decrypt them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tenseal.sealapi as sealapi

from fedsens.crypto.params import CkksParameters
from fedsens.crypto.residues import form_of
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.crypto.wire import FRESH, MAX_SUMMANDS, SUM, Batch, parse_batch
from fedsens.errors import CiphertextError, KeyMismatchError


class Aggregator:
    """Adds ciphertext batches one by one; memory does not depend on how many.

    Built from public parameters only. Ciphertexts are loaded one at a time, so beside the sum and
    the batch nothing is held. Adding is all or nothing: a batch that is damaged, of another number
    of values (CiphertextError) or under another key or other parameters (KeyMismatchError) leaves
    the sum as it was.
    """

    def __init__(
        self,
        parameters: CkksParameters,
        values: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Start an empty sum.

        Args:
            parameters: the public parameters of all batches to come.
            values: how many values each must hold; the first batch decides when None.
            fingerprint: of the key each must be made with; the first batch decides when None.
        """
        self.parameters = parameters
        self._values = values
        self._fingerprint = fingerprint
        self._evaluator = sealapi.Evaluator(seal_context(parameters))
        self._sum: list[Any] = []
        self._summands = 0

    @property
    def summands(self) -> int:
        """How many fresh ciphertexts have been added."""
        return self._summands

    def add(self, data: bytes, fresh: bool = False) -> None:
        """Add one batch.

        Args:
            data: a serialised batch.
            fresh: refuse a batch that is itself a sum, as a client's must not be.

        Raises:
            CiphertextError: the batch is damaged, or does not hold what the others hold.
        """
        batch = parse_batch(data, self.parameters)
        self._check(batch, fresh)
        added = 0
        try:
            for index, block in enumerate(load_blocks(batch, self.parameters)):
                added += 1
                if self._summands:
                    self._add_block(index, block)
                else:
                    self._sum.append(block)
        except CiphertextError:
            self._take_back(batch, added)
            raise
        self._fingerprint, self._values = batch.fingerprint, batch.values
        self._summands += batch.summands

    def _add_block(self, index: int, block: Any) -> None:
        try:
            self._evaluator.add_inplace(self._sum[index], block)
        except RuntimeError:  # which SEAL raises after it has added
            raise CiphertextError(
                f"expected a sum that hides its values, got none in ciphertext {index}: the batch "
                "is the negative of what was added before"
            ) from None

    def _take_back(self, batch: Batch, added: int) -> None:
        """Undo a partial addition, exactly: it is modulo q."""
        if not self._summands:
            self._sum.clear()
            return
        for total, block in zip(
            self._sum[:added], load_blocks(batch, self.parameters), strict=False
        ):
            self._evaluator.sub_inplace(total, block)

    def _check(self, batch: Batch, fresh: bool) -> None:
        fingerprint, values = self._fingerprint or batch.fingerprint, self._values
        if batch.fingerprint != fingerprint:
            raise KeyMismatchError(
                f"expected a batch under the key {fingerprint}, got {batch.fingerprint}; "
                "give every client the same key"
            )
        if values is not None and batch.values != values:
            raise CiphertextError(
                f"expected a batch of {values} values, got {batch.values}; "
                "clients must use the same mask"
            )
        if self._summands + batch.summands > MAX_SUMMANDS:
            raise CiphertextError(
                f"expected at most {MAX_SUMMANDS} summands in all, got a batch that claims "
                f"{batch.summands}; it was not made by fedsens"
            )
        if fresh and batch.kind != FRESH:
            raise CiphertextError(
                "expected a fresh batch, got one that is a sum already; a client must send what it "
                "encrypted itself"
            )

    def result(self) -> bytes:
        """The serialised sum of all batches added so far.

        Returns:
            A batch: about ``parameters.bytes_per_parameter_down`` bytes a value.

        Raises:
            CiphertextError: nothing was added yet.
        """
        if self._values is None or self._fingerprint is None or not self._summands:
            raise CiphertextError("expected at least one batch to sum, got none")
        form = form_of(self.parameters, False)
        with seal_file() as file:
            blocks = tuple(form.shrink(file.stream(block)) for block in self._sum)
        return Batch(
            SUM,
            self.parameters.digest,
            self._fingerprint,
            self._values,
            self._summands,
            blocks,
        ).to_bytes()

    def sum(self, batches: list[bytes]) -> bytes:
        """The sum of these batches and of those added before.

        Args:
            batches: serialised batches.

        Returns:
            The serialised sum.
        """
        for batch in batches:
            self.add(batch)
        return self.result()


def load_blocks(batch: Batch, parameters: CkksParameters) -> Iterator[Any]:
    """Let SEAL read the ciphertexts of a parsed batch, one at a time.

    Args:
        batch: a batch that passed :func:`~fedsens.crypto.wire.parse_batch`.
        parameters: its parameters.

    Yields:
        SEAL ciphertexts of two polynomials each.

    Raises:
        CiphertextError: SEAL refuses one, because a residue is not below q, or one can be read
            without a key.
    """
    context, form = seal_context(parameters), form_of(parameters, batch.kind == FRESH)
    with seal_file() as file:
        for index, block in enumerate(batch.blocks):
            try:
                ciphertext = file.load(sealapi.Ciphertext, context, *form.expand(block))
            except (RuntimeError, ValueError) as error:
                raise CiphertextError(
                    f"expected SEAL to accept ciphertext {index}, got: {error}"
                ) from None
            if ciphertext.is_transparent():
                raise CiphertextError(
                    f"expected an encrypted ciphertext {index}, got one that can be read without "
                    "a key; it was not made by fedsens"
                )
            yield ciphertext
