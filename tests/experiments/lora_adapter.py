"""What test_lora runs in a process of its own: ``lora_adapter.py MODEL FOLDER [--map]``."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.lora.run import load_app, run_app

CLIENTS = 3  # the fewest that clients take part with by default


def opened(model, folder):
    """Fine-tune, open the protected model as an adapter, and load that into a new base."""
    task = load_app("task")  # before peft, so that a torchvision that does not fit is left out
    from peft import PeftModel
    from safetensors.torch import load_file
    from typer.testing import CliRunner

    from fedsens.cli import app

    traffic = run_app(model, {"fedsens.ratio": 1.0}, 2, CLIENTS, out=folder)
    key = next((folder / "state").rglob("key"))
    arguments = ["open", folder / "protected.safetensors", "--key", key, "--out", folder / "new"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--adapter", str(folder / "adapter")])
    assert not result.exit_code, result.output
    base = task.get_model(model)
    before = [
        task.test(base, task.load_data(model, part, CLIENTS)[1])["loss"] for part in range(CLIENTS)
    ]
    loaded = PeftModel.from_pretrained(task.get_model(model).unload(), folder / "new")
    state = load_file(folder / "new" / "adapter_model.safetensors")
    after = [
        task.test(loaded, task.load_data(model, part, CLIENTS)[1])["loss"]
        for part in range(CLIENTS)
    ]
    return {
        "types": sorted({str(value.dtype) for value in state.values()}),
        "missing": sorted(state.keys() ^ task.adapter_of(loaded).keys()),
        "clients": sorted(each["loss"] for each in traffic.metrics[-CLIENTS:]),
        "opened": sorted(after),
        "base": sorted(before),
    }


def mapped(model):
    """Maps of a new adapter, and of one that was trained for an epoch."""
    client, task = load_app("client_app"), load_app("task")
    adapter, (batches, _) = task.get_model(model), task.load_data(model, 0, 2)
    first = largest(client.make_map(adapter, batches, model))
    task.train(adapter, batches, 1, 0.003)
    smap = client.make_map(adapter, batches, model)
    sent = sorted(task.adapter_of(adapter))
    return {"first": first, "second": largest(smap), "names": sorted(smap.sums), "sent": sent}


def largest(smap):
    scores = smap.sums
    return {
        kind: min(float(scores[name].max()) for name in scores if kind in name)
        for kind in ("lora_A", "lora_B")
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, place = sys.argv[1], Path(sys.argv[2])
    sys.stdout.write(
        json.dumps(mapped(name) if "--map" in sys.argv else opened(name, place)) + "\n"
    )
