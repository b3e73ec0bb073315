"""The client: fine-tunes and evaluates the global model on its own sentences."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from huggingfaceexample.task import Batches, get_model, load_data
from huggingfaceexample.task import test as test_fn
from huggingfaceexample.task import train as train_fn

app = ClientApp()


def own_data(context: Context) -> tuple[Batches, Batches]:
    """This client's batches to train on and to test on."""
    return load_data(int(context.node_config["partition-id"]))


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = get_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    trainloader, _ = own_data(context)
    epochs, lr = context.run_config["local-epochs"], context.run_config["learning-rate"]
    train_fn(model, trainloader, int(epochs), float(lr))
    metrics = MetricRecord({"num-examples": len(trainloader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = get_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, testloader = own_data(context)
    loss, accuracy = test_fn(model, testloader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
