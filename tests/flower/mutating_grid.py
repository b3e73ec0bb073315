"""Messages mutated at random: headers, arrays, metrics, keys, whole records, replays.

Checksums are made right again now and then, so that what lies behind them is reached, and a client
makes the tags of what it changed, as it holds the key.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsens.crypto import MAP_PARAMETERS
from fedsens.errors import FedSensError
from fedsens.flower import LocalGrid
from fedsens.flower._client import Client
from fedsens.flower._records import (
    CIPHERTEXT,
    HEADER,
    KEY_ANSWER,
    KEY_SUM_ACTION,
    MAP,
    record_to_bytes,
)
from fedsens.keys import make_tags
from fedsens.protocol import Contributor, KeySumRequest, ModelHeader, UploadHeader
from tests.fuzz import checksums
from tests.fuzz.mutate import mutate

NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 1e308, -1e308, 5e-324, float("nan"), float("inf"))
NAMES = ("fedsens.header", "fedsens.more", "arrays", "metrics", "a\nb", "", "num-examples")
MENDS = {
    "fedsens.mask": checksums.mask,
    "fedsens.model-mask": checksums.mask,
    CIPHERTEXT: checksums.batch,
    MAP: checksums.batch,
}
KEPT = 0.3  # share of the messages that stay as they are
FAILED = 0.05  # share of the answers that become errors
VOUCHED = 0.5  # share of the changed uploads that get the tags of what is in them


class HostileClient(LocalGrid):
    """Mutates what one node answers, whatever it is asked.

    Attributes:
        changed: how many answers were changed.
        vouched: rounds in whose sum the node may have put values of its own making, unseen.
    """

    def __init__(self, app: Any, clients: int, node: int, seed: int, **own: Any) -> None:
        super().__init__(app, clients, node_config=own)
        self._node, self.changed, self.vouched = node, 0, set[int]()
        self._mutator = Mutator(seed)

    def answer(self, message: Message) -> Message:
        asked = copy.deepcopy(message.content.config_records.get(HEADER))
        reply, rng = super().answer(message), self._mutator.random
        if message.metadata.dst_node_id != self._node or rng.random() < KEPT:
            return reply
        self.changed += 1
        if reply.has_error() or rng.random() < FAILED:
            text = rng.choice(("", "x\ny" * 2000, "ModelError: all wrong"))
            return Message(Error(rng.randrange(1, 12), text), reply_to=message)
        before = copy.deepcopy(reply.content)
        self._mutator.change(reply.content)
        if asked is not None and {CIPHERTEXT, MAP} & set(before):
            self._vouch(ModelHeader.model_validate_json(str(asked["json"])), reply.content, before)
        return reply

    def _vouch(self, asked: ModelHeader, content: RecordDict, before: RecordDict) -> None:
        """Give a changed ciphertext its tags, which takes the key."""
        name = MAP if MAP in before else CIPHERTEXT
        try:
            told = UploadHeader.model_validate_json(str(content.config_records[HEADER]["json"]))
            data = record_to_bytes(content, name)
            if data == record_to_bytes(before, name):
                return
            if told.tags and self._mutator.random.random() < VOUCHED:
                key = Client(self.nodes[self._node]).store.key_of(asked.key_index)
                assert key is not None
                parameters = MAP_PARAMETERS if name == MAP else asked.parameters
                member = Contributor(name=told.name, weight=told.weight, nonce=told.nonce)
                tags = make_tags(data, parameters, key, bytes.fromhex(told.context), member)
                told = told.model_copy(update={"tags": tags})
                content[HEADER] = ConfigRecord({"json": told.model_dump_json()})
            elif told.tags:
                return
        except (FedSensError, LookupError, ValueError):  # nothing that looks like an upload
            return
        if name == CIPHERTEXT:
            self.vouched.add(asked.round)


class HostileServer(LocalGrid):
    """Mutates what the nodes are asked, and keeps what they answer to it.

    Attributes:
        answers: message type and answer of every node to a changed message.
        keys: the different keys that a node gave for one kind of upload of one round.
    """

    def __init__(self, app: Any, clients: int, seed: int, **own: Any) -> None:
        super().__init__(app, clients, node_config=own)
        self._mutator, self.answers = Mutator(seed), list[tuple[str, Message]]()
        self.keys: dict[tuple[int, str, int], set[bytes]] = {}

    def answer(self, message: Message) -> Message:
        changed = self._mutator.random.random() >= KEPT
        if changed:
            self._mutator.change(message.content)
        asked = copy.deepcopy(message.content.config_records.get(HEADER))
        reply = super().answer(message)
        if changed:
            self.answers.append((message.metadata.message_type, copy.deepcopy(reply)))
        if message.metadata.message_type == f"query.{KEY_SUM_ACTION}" and reply.has_content():
            assert asked is not None
            request = KeySumRequest.model_validate_json(str(asked["json"]))
            question = message.metadata.dst_node_id, request.kind, request.round
            answer = record_to_bytes(copy.deepcopy(reply.content), KEY_ANSWER)
            self.keys.setdefault(question, set()).add(answer)
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
        elif self._earlier and rng.random() < 0.1:
            earlier = copy.deepcopy(rng.choice(self._earlier))
            content.clear()
            content.update(earlier)
        else:
            self._inside(name, content[name])

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
            if value.startswith("{") and self.random.random() < 0.6:
                with contextlib.suppress(ValueError, RecursionError):  # mutated before
                    return json.dumps(self._part(json.loads(value)))
            text = mutate(value.encode(), self.random, (), 2 * len(value) + 64)
            return text.decode(errors="replace")
        if isinstance(value, bytes):
            return mutate(value, self.random, (), 2 * len(value) + 64)
        return self.random.choice(NUMBERS)

    def _part(self, value: Any) -> Any:
        """A value of JSON of which one part is another, of the same type as a rule."""
        rng = self.random
        if isinstance(value, dict | list) and value and rng.random() < 0.95:
            key = rng.choice([*value]) if isinstance(value, dict) else rng.randrange(len(value))
            value[key] = self._part(value[key])
            return value
        if isinstance(value, list):
            return rng.choice((value[::-1], value * 2, value[1:]))
        if isinstance(value, int | float):
            return rng.choice((*NUMBERS, value + 1, value * 2, -value, value / 2, not value))
        if isinstance(value, str) and value:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice("0123456789abcdef") + value[at + 1 :]
        return rng.choice((None, 1, "a", {}))
