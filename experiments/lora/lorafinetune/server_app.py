"""The server: averages adapters that it cannot read, and keeps the protected result."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from lorafinetune.task import adapter_of, get_model

from fedsens import FedSensConfig
from fedsens.flower import SelectiveEncryption
from fedsens.protocol import save_protected

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    options = context.run_config
    model = get_model(str(options["model"]), str(options["dtype"]))
    strategy = SelectiveEncryption(FedAvg(), FedSensConfig.from_run_config(options))
    rounds = int(options["num-server-rounds"])
    strategy.start(grid, ArrayRecord(adapter_of(model)), num_rounds=rounds)
    if options["output-dir"]:
        folder = Path(str(options["output-dir"]))
        model.save_pretrained(folder / "adapter")  # as it was: for fedsens open --adapter
        save_protected(strategy.model, folder / "protected.safetensors")
