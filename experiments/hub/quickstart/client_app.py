"""The client. Three things are fedsens's: the mod, ``sensitivity``, and ``install``."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedsens import SensitivityMap, sensitivity_map
from fedsens.flower import SelectiveEncryptionMod, install
from quickstart.task import accuracy, load_data, make_model
from quickstart.task import train as train_fn

app = ClientApp(mods=[SelectiveEncryptionMod()])


def received(message: Message) -> nn.Module:
    """The global model."""
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on local data."""
    model, (x, y), options = received(message), load_data(context), context.run_config
    train_fn(model, x, y, int(options["local-epochs"]), float(options["learning-rate"]))
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    x, y = load_data(context)
    metrics = MetricRecord({"accuracy": accuracy(received(message), x, y), "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def sensitivity(message: Message, context: Context) -> SensitivityMap:
    """How much each parameter tells about the labels; asked for at ratios below 1."""
    x, y = load_data(context)
    return sensitivity_map(received(message), [(x[:128], y[:128])])


install(app, sensitivity, examples=lambda context: len(load_data(context)[1]))
