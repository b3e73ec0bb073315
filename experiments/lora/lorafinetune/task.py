"""Small language models with adapters, and texts for them; nothing is downloaded.

Where a real app loads a pretrained base, this one draws one from a seed, the same for all. Texts
are what comes with Python: the help topics of pydoc, and sources of its own library. A token is a
byte.
"""

import inspect
import json
import tarfile
from collections.abc import Mapping
from functools import cache
from pydoc_data.topics import topics

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LENGTH, TRAIN, TEST = 64, 192, 64  # bytes in a window, windows of a client
SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
CAUSAL = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
Batches = DataLoader[dict[str, Tensor]]


def get_model(name: str, dtype: str = "bfloat16") -> PeftModel:
    """A base and a trained head of one type, and LoRA matrices, which are float32 in both."""
    torch.manual_seed(0)
    if name in CAUSAL:
        config, model = CAUSAL[name]
        base = model(config(**SIZES, num_key_value_heads=2)).to(getattr(torch, dtype))
        targets, head, task = ["q_proj", "v_proj", "up_proj"], "lm_head", "CAUSAL_LM"
    else:
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(**SIZES, **quiet, num_labels=2)
        base = BertForSequenceClassification(config).to(getattr(torch, dtype))
        targets, head, task = ["query", "value"], "classifier", "SEQ_CLS"
    return get_peft_model(
        base,
        LoraConfig(
            task_type=task, r=8, lora_alpha=16, target_modules=targets, modules_to_save=[head]
        ),
    )


def adapter_of(model: PeftModel) -> dict[str, Tensor]:
    """What is sent: the adapter alone. NumPy, and so Flower, has no bfloat16; float32 holds it."""
    return {name: value.float() for name, value in get_peft_model_state_dict(model).items()}


def load_adapter(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Undo adapter_of; every parameter keeps its own type."""
    set_peft_model_state_dict(model, dict(state))


def sent_name(name: str) -> str:
    """A parameter's name in an adapter's state dict, by its name in the model."""
    return name.replace(".modules_to_save", "").replace(".default", "")


@cache
def _windows(text: str) -> Tensor:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    return data[: len(data) // LENGTH * LENGTH].reshape(-1, LENGTH)


def load_data(name: str, partition: int, partitions: int) -> tuple[Batches, Batches]:
    """A client's batches to train on and to test on: help topics, or these and source code."""
    prose = _windows("".join(topics[key] for key in sorted(topics)))[partition::partitions]
    if name in CAUSAL:
        windows = prose[: TRAIN + TEST]
        samples = [{"input_ids": window, "labels": window} for window in windows]
    else:
        code = _windows("".join(map(inspect.getsource, (inspect, json, tarfile))))
        half = (TRAIN + TEST) // 2
        pairs = zip(prose[:half], code[partition::partitions][:half], strict=True)
        samples = [
            {"input_ids": window, "labels": torch.tensor(label)}
            for pair in pairs
            for label, window in enumerate(pair)
        ]
    order = torch.Generator().manual_seed(partition)
    train = DataLoader(samples[:TRAIN], batch_size=16, shuffle=True, generator=order)
    return train, DataLoader(samples[TRAIN:], batch_size=64)


def train(model: PeftModel, batches: Batches, epochs: int, lr: float) -> None:
    """Train what is not frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()


def test(model: PeftModel, batches: Batches) -> dict[str, float]:
    """The mean loss, and the share of labels that are right: of the next byte, or of the window."""
    loss, right, count = 0.0, 0, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            logits, labels = model(**batch).logits.float(), batch["labels"]
            if labels.dim() > 1:
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    return {"loss": loss / count, "accuracy": right / count}
