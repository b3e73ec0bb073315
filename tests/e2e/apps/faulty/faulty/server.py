"""The server: FedAvg of whoever is there, with its log in the output folder."""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsens import FedSensConfig
from fedsens.flower import SelectiveEncryption, log_through_flower

from .model import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    options = context.run_config
    folder = Path(str(options["output-dir"]))
    log_through_flower()
    logging.getLogger("fedsens").addHandler(logging.FileHandler(folder / "server.log"))
    random.seed(0)
    strategy = SelectiveEncryption(
        FedAvg(fraction_evaluate=float(options["fraction-evaluate"])),
        FedSensConfig.from_run_config(options),
        output_dir=folder,
    )
    strategy.start(
        grid,
        ArrayRecord({name: Array(array) for name, array in initial().items()}),
        num_rounds=int(options["num-server-rounds"]),
        timeout=float(options["round-timeout"]),
    )
    (folder / "modules.txt").write_text("\n".join(sorted(sys.modules)))
