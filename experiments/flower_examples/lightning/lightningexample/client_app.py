"""The client: trains and evaluates the autoencoder on its own images."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lightningexample.task import Batches, LitAutoEncoder, load_data, trainer

app = ClientApp()


def own_data(context: Context) -> tuple[Batches, Batches]:
    """This client's batches to train on and to test on."""
    node = context.node_config
    return load_data(int(node["partition-id"]), int(node["num-partitions"]))


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = LitAutoEncoder()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    trainloader, _ = own_data(context)
    trainer(max_epochs=int(context.run_config["max-epochs"])).fit(model, trainloader)
    metrics = MetricRecord({"num-examples": len(trainloader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = LitAutoEncoder()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, testloader = own_data(context)
    loss = trainer().test(model, testloader, verbose=False)[0]["test_loss"]
    metrics = MetricRecord({"eval_loss": loss, "num-examples": len(testloader.dataset)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
