"""The server: averages the clients' coefficients and saves the result."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sklearnexample.task import create_model, get_model_params

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    num_rounds = int(context.run_config["num-server-rounds"])
    model = create_model(int(context.run_config["local-epochs"]))
    arrays = ArrayRecord(get_model_params(model))
    strategy = FedAvg()
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=num_rounds)
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
