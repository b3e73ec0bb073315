"""The client: trains and evaluates the regression on its own digits."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from sklearnexample.task import (
    Data,
    create_model,
    fit,
    get_model_params,
    load_data,
    set_model_params,
)

app = ClientApp()


def own_data(context: Context) -> tuple[Data, Data]:
    """This client's data to train on and to test on."""
    node = context.node_config
    return load_data(int(node["partition-id"]), int(node["num-partitions"]))


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = create_model(int(context.run_config["local-epochs"]))
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())
    data, _ = own_data(context)
    fit(model, data)
    metrics = MetricRecord({"num-examples": len(data[1])})
    content = RecordDict({"arrays": ArrayRecord(get_model_params(model)), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = create_model(int(context.run_config["local-epochs"]))
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())
    _, (x, y) = own_data(context)
    loss = float(log_loss(y, model.predict_proba(x), labels=range(10)))
    metrics = {"eval_loss": loss, "eval_acc": float(model.score(x, y)), "num-examples": len(y)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
