"""The server: averages the clients' models and saves the result."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from lightningexample.task import LitAutoEncoder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    num_rounds = int(context.run_config["num-server-rounds"])
    arrays = ArrayRecord(LitAutoEncoder().state_dict())
    strategy = FedAvg()
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=num_rounds)
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
