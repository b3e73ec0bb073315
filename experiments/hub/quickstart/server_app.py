"""The server. One thing is fedsens's: the strategy is wrapped."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsens import FedSensConfig
from fedsens.flower import SelectiveEncryption
from quickstart.task import make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    options = context.run_config
    folder = Path(str(options["output-dir"])) if options["output-dir"] else None
    config = FedSensConfig.from_run_config(options)
    strategy = SelectiveEncryption(FedAvg(), config, output_dir=folder)
    rounds = int(options["num-server-rounds"])
    strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=rounds)
