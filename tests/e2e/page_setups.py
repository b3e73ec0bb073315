"""What a reader has at hand on a page: files in the folder, and names for the blocks of Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.pages import ROOT

AFTER_A_RUN = {"docs/how-to/costs.md", "docs/how-to/map.md"}  # its model lies there, too
EMPTY = {"docs/tutorial/2-your-app.md", "docs/how-to/extend.md"}  # begin in an empty folder
SHORT = {  # what the app trains where a page gives no number of rounds
    "num-server-rounds = 5": "num-server-rounds = 2",
    "local-epochs = 3": "local-epochs = 1",
    "map-samples = 256": "map-samples = 32",
    "key-timeout = 120.0": "key-timeout = 300.0",  # of a busy machine
}
MODEL = '''"""A model of the reader's own."""

from torch import nn


def make(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, classes))
'''
CLASSIFIER = """
import torch
from torch import nn
from fedsens.sensitivity import *
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
batch, loader = (x, y), [(x, y)]
batches = loader
"""
LATER = "later_x, later_y, k, rate, a = x, y, 2, 0.1, torch.ones(4)\n"
TRANSFORMERS = """
import sys
sys.modules["torchvision"] = None  # one built for another torch must not stop transformers
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification
from transformers import GPT2Config, GPT2LMHeadModel

small = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=8, num_labels=3)
bert, tagger = BertForSequenceClassification(small), BertForTokenClassification(small)
gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
ids = torch.randint(20, (4, 8))
sentences = [{"input_ids": ids, "labels": y}]
tagged = [{"input_ids": ids, "labels": ids % 3}]
texts = [{"input_ids": ids, "labels": ids}]
"""
MAPS = """
model = nn.Sequential()
model.add_module("body", nn.Sequential(nn.Linear(6, 5), nn.Tanh()))
model.add_module("head", nn.Linear(5, 3))
unet, scans = nn.Conv2d(1, 3, 3), [(torch.randn(4, 1, 6, 6), torch.randint(3, (4, 4, 4)))]
cnn, records = nn.Linear(6, 3), [({"img": x}, y)]
compiled = nn.Sequential()
compiled.add_module("_orig_mod", model)
adapters = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(6, 3)})})
peft_model = type("Peft", (nn.Module,), {
    "forward": lambda self, x: self.adapters["lora_A"]["default"](x)
})()
peft_model.adapters = adapters
old, new = sensitivity_map(model, loader), sensitivity_map(model, loader, rule="true_label")
save_map(old, "a.safetensors")
save_map(new, "b.safetensors")
"""
NAMES = {
    "docs/how-to/jacobians.md": CLASSIFIER + LATER,
    "docs/explanation/sensitivity.md": CLASSIFIER,
    "docs/how-to/map.md": CLASSIFIER + TRANSFORMERS + MAPS,
}


def prepare(page: str, folder: Path) -> None:
    """Put into a folder what a reader of a page has: the app, a model and small data.

    Args:
        page: its path in the repository.
        folder: an empty one.
    """
    if page in EMPTY:
        return
    for name in ("client", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    app = (ROOT / "pyproject.toml").read_text()
    for here, there in SHORT.items():
        app = app.replace(here, there)
    (folder / "pyproject.toml").write_text(app)
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "models.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in {"images": (8, 8), "mnist": (28, 28), "cifar10": (32, 32, 3)}.items():
        x = rng.integers(0, 256, (400, *shape), np.uint8)
        np.savez(folder / f"{name}.npz", x=x, y=np.arange(400) % 10)
