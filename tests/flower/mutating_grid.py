"""Messages mutated at random: headers, arrays, metrics, whole records, replays.

Ciphertexts are not given a right checksum again, tags and keys of the right length no other value,
nor maps another weight: every contributor can spoil a sum so, which ends the run by name (see
SECURITY.md).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsens.flower import LocalGrid
from tests.fuzz import mend
from tests.fuzz.mutate import mutate

NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 1e308, -1e308, 5e-324, float("nan"), float("inf"))
NAMES = ("fedsens.header", "fedsens.more", "arrays", "metrics", "a\nb", "", "num-examples")
MENDS = {"fedsens.mask": mend.mask, "fedsens.model-mask": mend.mask}
KEPT = 0.3  # share of the messages that stay as they are
FAILED = 0.05  # share of the answers that become errors


class HostileClient(LocalGrid):
    """Mutates what one node answers, whatever it is asked.

    Attributes:
        changed: how many answers were changed.
    """

    def __init__(self, app: Any, clients: int, node: int, seed: int) -> None:
        super().__init__(app, clients)
        self._node, self.changed = node, 0
        self._mutator = Mutator(seed)

    def answer(self, message: Message) -> Message:
        reply, rng = super().answer(message), self._mutator.random
        if message.metadata.dst_node_id != self._node or rng.random() < KEPT:
            return reply
        self.changed += 1
        if reply.has_error() or rng.random() < FAILED:
            text = rng.choice(("", "x\ny" * 2000, "ModelError: all wrong"))
            return Message(Error(rng.randrange(1, 12), text), reply_to=message)
        self._mutator.change(reply.content)
        return reply


class HostileServer(LocalGrid):
    """Mutates what the nodes are asked, and keeps what they answer to it.

    Attributes:
        answers: message type and answer of every node to a changed message.
    """

    def __init__(self, app: Any, clients: int, seed: int) -> None:
        super().__init__(app, clients)
        self._mutator, self.answers = Mutator(seed), list[tuple[str, Message]]()

    def answer(self, message: Message) -> Message:
        if self._mutator.random.random() < KEPT:
            return super().answer(message)
        self._mutator.change(message.content)
        reply = super().answer(message)
        self.answers.append((message.metadata.message_type, copy.deepcopy(reply)))
        return reply


class Mutator:
    """Changes the content of messages.

    Attributes:
        random: decides.
    """

    def __init__(self, seed: int) -> None:
        self.random, self._earlier = random.Random(seed), list[RecordDict]()

    def change(self, content: RecordDict) -> None:
        """Change a content in one or two places."""
        for _ in range(self.random.choice((1, 1, 2))):
            self._change(content)
        self._earlier.append(copy.deepcopy(content))

    def _change(self, content: RecordDict) -> None:
        rng = self.random
        name = rng.choice([*content]) if len(content) else None
        if name is None or rng.random() < 0.15:
            kinds: tuple[Callable[[], Any], ...] = (ArrayRecord, ConfigRecord, MetricRecord)
            content[rng.choice(NAMES)] = rng.choice(kinds)()
        elif rng.random() < 0.1:
            del content[name]
        elif rng.random() < 0.1:
            content[rng.choice(NAMES)] = content.pop(name)
        elif self._earlier and "fedsens.key-answer" not in content and rng.random() < 0.1:
            earlier = copy.deepcopy(rng.choice(self._earlier))
            content.clear()
            content.update(earlier)
        elif name not in self._spoils(content):
            self._inside(name, content[name])

    @staticmethod
    def _spoils(content: RecordDict) -> set[str]:
        """Records in which a change could make a sum that looks right and does not open."""
        return {"fedsens.key-answer"} | ({"fedsens.header"} if "fedsens.map" in content else set())

    def _inside(self, name: str, record: Any) -> None:
        rng = self.random
        key = rng.choice([*record]) if len(record) else None
        if key is None or rng.random() < 0.1:
            record[rng.choice(NAMES)] = (
                Array("float32", (1,), "numpy.ndarray", b"")
                if isinstance(record, ArrayRecord)
                else 1
            )
        elif rng.random() < 0.1:
            del record[key]
        elif isinstance(record, MetricRecord):
            value = rng.choice(NUMBERS)
            record[key] = [value] * rng.randrange(3) if rng.random() < 0.2 else value
        elif isinstance(record, ArrayRecord):
            array = record[key]
            data = mutate(array.data, rng, (), 2 * len(array.data) + 64)
            data = MENDS.get(name, bytes)(data) if rng.random() < 0.7 else data
            record[key] = Array(array.dtype, array.shape, array.stype, data)
        else:
            record[key] = self._value(record[key])

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            text = mutate(value.encode(), self.random, (), 2 * len(value) + 64)
            return _with_tags_of(value, text.decode(errors="replace"))
        if isinstance(value, bytes):
            return mutate(value, self.random, (), 2 * len(value) + 64)
        return self.random.choice(NUMBERS)


def _with_tags_of(header: str, changed: str) -> str:
    """A changed header with the tags that it had."""
    try:
        tags, fields = json.loads(header)["tags"], json.loads(changed)
        return json.dumps({**fields, "tags": tags}) if "tags" in fields else changed
    except (ValueError, LookupError, TypeError, RecursionError):
        return changed
