"""The client: fine-tunes and evaluates the global adapter on its own texts."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lorafinetune.task import (
    CAUSAL,
    Batches,
    adapter_of,
    get_model,
    load_adapter,
    load_data,
    sent_name,
)
from lorafinetune.task import test as test_fn
from lorafinetune.task import train as train_fn
from peft import PeftModel

from fedsens import sensitivity_map
from fedsens.flower import SelectiveEncryptionMod, install
from fedsens.sensitivity import SensitivityMap, next_token_batches

app = ClientApp(mods=[SelectiveEncryptionMod()])


def received(msg: Message, context: Context) -> PeftModel:
    """The base, which every client has, with the global adapter."""
    model = get_model(str(context.run_config["model"]), str(context.run_config["dtype"]))
    load_adapter(model, msg.content["arrays"].to_torch_state_dict())
    return model


def own_data(context: Context) -> tuple[Batches, Batches]:
    """This client's batches to train on and to test on."""
    node = context.node_config
    name = str(context.run_config["model"])
    return load_data(name, int(node["partition-id"]), int(node["num-partitions"]))


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the adapter on local texts."""
    model, (batches, _) = received(msg, context), own_data(context)
    options = context.run_config
    train_fn(model, batches, int(options["local-epochs"]), float(options["learning-rate"]))
    metrics = MetricRecord({"num-examples": len(batches.dataset)})
    content = RecordDict({"arrays": ArrayRecord(adapter_of(model)), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the adapter on local texts."""
    model, (_, batches) = received(msg, context), own_data(context)
    metrics = {**test_fn(model, batches), "num-examples": len(batches.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def make_map(model: PeftModel, batches: Batches, name: str) -> SensitivityMap:
    """The map of an adapter, under the names that are sent."""
    if name in CAUSAL:
        texts = next_token_batches(batches)
        return sensitivity_map(model, texts, "token_cross_entropy", rows=4, rename=sent_name)
    return sensitivity_map(model, batches, rename=sent_name)


def sensitivity(msg: Message, context: Context) -> SensitivityMap:
    """This client's map; with ratio 1 nobody asks for it."""
    batches, _ = own_data(context)
    return make_map(received(msg, context), batches, str(context.run_config["model"]))


install(app, sensitivity, examples=lambda context: len(own_data(context)[0].dataset))
