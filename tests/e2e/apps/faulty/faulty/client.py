"""The client: trains well, except in the rounds that its node config names.

``faults = "raise@2 sleep@4"``: it raises in round 2 and sleeps past every deadline in round 4.
``train-seconds = 4.0``: it trains so long, and its log says when it begins.
"""

from __future__ import annotations

import json
import logging
import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsens.flower import SelectiveEncryptionMod, install, log_through_flower

from .model import accuracy, data_of
from .model import train as train_model

SLEEP = 70.0  # longer than the deadline of a phase


def forge(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Outside of fedsens's mod: what a client that cheats can send."""
    fault = fault_of(message, context)
    reply = call_next(message, context)
    if fault == "old-context" and reply.has_content():
        header = json.loads(reply.content["fedsens.header"]["json"])
        reply.content["fedsens.header"]["json"] = json.dumps({**header, "context": "ab" * 32})
    if fault == "layout" and reply.has_content():
        record = reply.content["arrays"]
        record["b"] = Array(np.append(record["b"].numpy(), np.float32(0)))
    return reply


app = ClientApp(mods=[forge, SelectiveEncryptionMod()])
log_through_flower()


@app.train()
def train(message: Message, context: Context) -> Message:
    fault = fault_of(message, context)
    server_round = message.content["config"]["server-round"]
    logging.getLogger("fedsens.faulty").info("training begins in round %s", server_round)
    time.sleep(float(context.node_config.get("train-seconds", 0.0)))
    if fault == "raise":
        raise ValueError("this client raises")
    if fault == "die":
        os._exit(1)
    if fault == "sleep":
        time.sleep(SLEEP)
    x, y = data_of(int(context.node_config["partition-id"]))
    model = train_model(model_of(message), x, y)
    if fault == "other-model":
        model["w"] = model["w"][:-1]
    content = RecordDict({
        "arrays": ArrayRecord({name: Array(array) for name, array in model.items()}),
        "metrics": MetricRecord({"num-examples": len(y)}),
    })
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    x, y = data_of(int(context.node_config["partition-id"]))
    metrics = {"num-examples": len(y), "accuracy": accuracy(model_of(message), x, y)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


install(
    app, None, examples=lambda context: len(data_of(int(context.node_config["partition-id"]))[1])
)


def model_of(message: Message) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


def fault_of(message: Message, context: Context) -> str:
    """What this client does wrong in this round's training."""
    faults = dict(
        each.split("@")[::-1] for each in str(context.node_config.get("faults", "")).split()
    )
    if message.metadata.message_type != "train":
        return ""
    return faults.get(str(message.content["config"]["server-round"]), "")
