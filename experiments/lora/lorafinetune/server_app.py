"""The server: averages adapters that it cannot read, and keeps the protected result."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from lorafinetune.task import adapter_of, get_model

from fedsens import FedSensConfig
from fedsens.flower import SelectiveEncryption

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    options = context.run_config
    model = get_model(str(options["model"]), str(options["dtype"]))
    config, folder = FedSensConfig.from_run_config(options), str(options["output-dir"])
    strategy = SelectiveEncryption(FedAvg(), config, output_dir=folder or None)
    rounds = int(options["num-server-rounds"])
    strategy.start(grid, ArrayRecord(adapter_of(model)), num_rounds=rounds)
    if folder:
        model.save_pretrained(Path(folder) / "adapter")  # as it was: for fedsens open --adapter
