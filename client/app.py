"""A plain Flower ClientApp with the fedsens mod: train and test never see a ciphertext."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.models import build_model
from client.partition import load_partition
from client.task import default_device
from client.task import test as test_model
from client.task import train as train_model
from fedsens import SensitivityMap, sensitivity_map
from fedsens.data import Dataset
from fedsens.flower import SelectiveEncryptionMod, install, log_through_flower

app = ClientApp(mods=[SelectiveEncryptionMod()])
log_through_flower()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's images."""
    options, (images, _) = context.run_config, _data(context)
    model = _model(message, context, images)
    config = message.content.config_records["config"]
    partition = int(context.node_config["partition-id"])
    metrics = train_model(
        model,
        images,
        epochs=int(options["local-epochs"]),
        batch_size=int(options["batch-size"]),
        learning_rate=float(options["learning-rate"]),
        momentum=float(options["momentum"]),
        seed=hash((int(options["seed"]), partition, config["server-round"])) % 2**31,
        proximal_mu=float(str(config["proximal-mu"])),
        device=default_device(),
    )
    content = RecordDict({
        "arrays": ArrayRecord(model.cpu().state_dict()),
        "metrics": MetricRecord({"num-examples": len(images), **metrics}),
    })
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on this client's held-out images."""
    _, images = _data(context)
    loss, accuracy = test_model(_model(message, context, images), images, default_device())
    metrics = MetricRecord({"num-examples": len(images), "loss": loss, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def sensitivity(message: Message, context: Context) -> SensitivityMap:
    """This client's parameter-label sensitivity map, on its training images."""
    options, (images, _) = context.run_config, _data(context)
    model = _model(message, context, images).to(default_device())
    samples = int(options["map-samples"]) or None
    config = message.content["config"]
    rule, timeout = str(config["rule"]), float(str(config["timeout"]))
    return sensitivity_map(model, images.batches(64, samples), rule=rule, timeout=timeout)


install(app, sensitivity, examples=lambda context: len(_data(context)[0]))


def _data(context: Context) -> tuple[Dataset, Dataset]:
    options, node = context.run_config, context.node_config
    torch.set_num_threads(int(options["threads"]))
    return load_partition(
        str(node.get("data", options["data"])),
        int(node["partition-id"]),
        int(node["num-partitions"]),
        alpha=float(options["alpha"]),
        seed=int(options["seed"]),
        classes=int(options["classes"]),
    )


def _model(message: Message, context: Context, images: Dataset) -> nn.Module:
    options = context.run_config
    channels, height, width = images.x.shape[1:]
    model = build_model(
        str(options["model"]), (channels, height, width), images.classes, int(options["seed"])
    )
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return model
