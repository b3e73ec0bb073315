"""A plain Flower ServerApp whose strategy is wrapped in SelectiveEncryption."""

from __future__ import annotations

import random
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx

from client.models import build_model
from fedsens import FedSensConfig
from fedsens.flower import SelectiveEncryption, log_through_flower

app = ServerApp()
EXCLUDED_FROM_RESUME_CHECK = {
    "num-server-rounds",
    "round-timeout",
    "output-dir",
}  # may change when resuming


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation and leave its reports and the protected model in ``output-dir``."""
    options = context.run_config
    config = FedSensConfig.from_run_config(options)
    log_through_flower(config.log_format)
    random.seed(int(options["seed"]))  # Flower samples nodes with the global generator
    channels, height, width = (int(n) for n in str(options["image-shape"]).split(","))
    model = build_model(
        str(options["model"]),
        (channels, height, width),
        int(options["classes"]),
        int(options["seed"]),
    )
    mu = float(options["proximal-mu"])
    fraction = float(options["fraction-train"])
    inner = FedProx(fraction, proximal_mu=mu) if mu > 0 else FedAvg(fraction)
    folder = Path(str(options["output-dir"])) if options["output-dir"] else None
    strategy = SelectiveEncryption(
        inner,
        config,
        app_config=_result_options(options),
        output_dir=folder,
    )
    strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(options["num-server-rounds"]),
        timeout=float(options["round-timeout"]),
        train_config=ConfigRecord({"proximal-mu": mu}),
    )


def _result_options(options: UserConfig) -> dict[str, object]:
    """The app's own options that the result depends on."""
    return {
        key: value
        for key, value in options.items()
        if key not in EXCLUDED_FROM_RESUME_CHECK and not key.startswith("fedsens.")
    }
