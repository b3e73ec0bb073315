"""The exceptions that fedsens raises, in one small tree.

::

    FedSensError
    ├── ConfigurationError        an option or a combination of options is wrong
    ├── LayoutError               two models do not have the same parameters
    ├── DataError                 a data set cannot be read as what it claims to be
    ├── SensitivityError          a sensitivity map cannot be computed, merged or read
    │   └── MapTimeoutError       a map is not done in the time that it was given
    ├── MaskError                 a mask is malformed, or not the mask that was agreed
    ├── CryptoError
    │   ├── ValueRangeError       a value is NaN, infinite or beyond the declared range
    │   ├── CiphertextError       bytes are not a ciphertext batch, or are damaged
    │   └── KeyMismatchError      key or parameters differ from those of the ciphertext
    ├── KeyFileError              a key file cannot be read, written or trusted
    ├── ProtocolError
    │   ├── DowngradeError        a message asks for less protection than agreed
    │   ├── RoundError            a message belongs to another round
    │   ├── RosterError           a public key is unknown or has changed
    │   ├── ListError             a list of contributors differs from the one that was answered
    │   ├── ContributorsError     an aggregate is not the sum of enough clients' updates
    │   ├── ModelError            a model is not one that honest clients could have made
    │   ├── EnvelopeError         a sealed key does not open
    │   └── PhaseError            a phase ended without enough answers
    │       └── SumError          maps were collected, but key holders refuse their sum
    ├── CheckpointError           a checkpoint is damaged, or belongs to another run
    ├── StrategyError             the inner strategy cannot work on ciphertexts
    ├── SimulationError           a simulation did not run to its end
    ├── DeploymentError           a run on a deployed SuperLink did not start or complete
    └── BenchmarkError            what was measured is not what should have been

Messages say what was expected, what came instead and what to do. They never hold a
parameter value, a key, a sensitivity or a label, because a client's error travels to the server.
What may quote data is in a note (PEP 678), which stays on the machine where it is raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class FedSensError(Exception):
    """Base of every error that fedsens raises on purpose.

    Args:
        text: for everybody.
        note: what may quote data, such as another error's text.
    """

    def __init__(self, text: str = "", note: str = "") -> None:
        super().__init__(text)
        if note:
            self.add_note(note)

    @property
    def with_notes(self) -> str:
        """The text and the notes, which may quote data: for the machine that has them."""
        return ". ".join([str(self), *getattr(self, "__notes__", ())])


class ConfigurationError(FedSensError):
    """An option, or a combination of options, is wrong."""


class LayoutError(FedSensError):
    """Two models do not have the same parameters, shapes or types."""


class DataError(FedSensError):
    """A data set cannot be read as what it claims to be."""


class SensitivityError(FedSensError):
    """A sensitivity map cannot be computed, merged or read."""


class MapTimeoutError(SensitivityError):
    """A map is not done in the time that it was given.

    Args:
        message: the text.
        samples: how many samples were added in that time.
        seconds: how long it took.
    """

    def __init__(self, message: str, samples: int, seconds: float) -> None:
        super().__init__(message)
        self.samples = samples
        self.seconds = seconds


class MaskError(FedSensError):
    """A mask is malformed, or is not the mask that was agreed on."""


class CryptoError(FedSensError):
    """Base of the errors of the CKKS codec."""


class ValueRangeError(CryptoError):
    """A value is NaN, infinite or beyond the declared range."""


class CiphertextError(CryptoError):
    """Bytes are not a ciphertext batch, or they are damaged."""


class KeyMismatchError(CryptoError):
    """A key or a parameter set differs from the one the ciphertext was made with."""


class KeyFileError(FedSensError):
    """A key file cannot be read, written or trusted."""


class ProtocolError(FedSensError):
    """Base of the errors of the message protocol."""


class DowngradeError(ProtocolError):
    """A message asks for less protection than was agreed."""


class RoundError(ProtocolError):
    """A message belongs to another round than the one it claims."""


class RosterError(ProtocolError):
    """A public key is unknown or is not the one that was pinned."""


class ListError(ProtocolError):
    """A list of contributors differs from the one that was answered for the same upload."""


class ContributorsError(ProtocolError):
    """An aggregate is not the sum that the server states, or of too few clients' updates."""


class ModelError(ProtocolError):
    """An opened model is not one that honest clients could have made, or exceeds a bound."""


class EnvelopeError(ProtocolError):
    """A sealed key does not open for this client."""


class PhaseError(ProtocolError):
    """A phase ended without enough usable answers.

    Attributes:
        nodes: the nodes that are to blame, where they are known.
    """

    def __init__(self, text: str, nodes: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.nodes = frozenset(nodes)


class SumError(PhaseError):
    """Uploads were collected, but nobody can use their sum, which holds nonsense.

    Attributes:
        refused: the nodes whose uploads are in it.
    """

    def __init__(self, text: str, refused: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.refused = frozenset(refused)


class CheckpointError(FedSensError):
    """A checkpoint is missing or damaged, or belongs to another run."""


class StrategyError(FedSensError):
    """The inner strategy cannot be applied to ciphertexts."""


class SimulationError(FedSensError):
    """A simulation did not run to its end."""


class DeploymentError(FedSensError):
    """A run on a deployed SuperLink did not start or did not complete."""


class BenchmarkError(FedSensError):
    """Methods that should agree do not, or a client was lost: the figures would mislead."""
