"""Models of libraries at a size that a map takes seconds for, with batches for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from experiments.architectures import handmade

LIBRARIES = ("torch", "transformers", "peft", "timm", "torchvision")
C, VOCABULARY, SIDE = 3, 37, 32
LARGEST = 3_000_000  # parameters of a model that is small where its configuration knows our names
Batch = Any
Made = tuple[nn.Module, list[Batch]]
# what configurations of transformers call the same things
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "d_ff", "ffn_dim"), 20),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 20),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "num_labels": C,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "image_size": SIDE,
    "patch_size": 8,
    "num_local_experts": 3,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
}
TASKS = {
    "text": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "LoraConfig": {"r": 2},
    "AdaLoraConfig": {"init_r": 2, "target_r": 1, "total_step": 10},
    "IA3Config": {"feedforward_modules": []},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "OFTConfig": {"r": 0, "oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {"r": 2},
    "FourierFTConfig": {"n_frequency": 8},
    "VeraConfig": {"r": 2},
    "VBLoRAConfig": {"r": 2, "num_vectors": 6, "vector_length": 4, "topk": 2},
    "LNTuningConfig": {"target_modules": ["LayerNorm"]},
    "RandLoraConfig": {"r": 2},
    "MissConfig": {"r": 2},
    "PromptTuningConfig": {"num_virtual_tokens": 3},
    "PromptEncoderConfig": {"num_virtual_tokens": 3},
}


def names() -> Iterator[tuple[str, str]]:
    """Families and architectures of the libraries that are installed."""
    _declare_operators()
    yield from (("by hand", name) for name in handmade.STEPS)
    if _works("transformers"):
        for task in TASKS:
            yield from ((f"transformers, {task}", name) for name in _classes(task))
    if _works("peft"):
        yield from (("peft on BERT", name) for name in ADAPTERS)
    if _works("timm"):
        models = import_module("timm").list_models("test_*")
        yield from (("timm", name) for name in models)
    if _works("torchvision"):
        light = (
            "mobilenet_v3_small",
            "shufflenet_v2_x0_5",
            "squeezenet1_1",
            "mnasnet0_5",
            "resnet18",
        )
        yield from (("torchvision", name) for name in light)


def _works(library: str) -> bool:
    try:
        import_module(library)
    except (ImportError, RuntimeError):  # not there, or built for another version of torch
        return False
    return True


def _declare_operators() -> None:
    """Let a torchvision whose compiled part is for CUDA load beside a torch for CPUs alone.

    It registers shapes of two operators on boxes of that part when it is imported. Its models of
    images, and timm, which imports it, take neither.
    """
    if find_spec("torchvision") and not _works("torchvision"):
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", boxes)


def make(family: str, name: str) -> Made:
    """A model in float64 with two batches, its parameters off their initial values."""
    torch.manual_seed(0)
    model, batches = _MAKERS[family.partition(",")[0]](family, name)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model, [_double(batch) for batch in batches]


def _by_hand(_: str, name: str) -> Made:
    return handmade.make(name), [
        (torch.randn(6, length, handmade.D), torch.randint(C, (6,))) for length in (4, 6)
    ]


def _transformers(family: str, name: str) -> Made:
    library = import_module("transformers")
    kind = getattr(library, name)
    task = family.partition(", ")[2]
    config = _configured(kind.config_class)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters at the sizes that are common to all")
    return kind(config), _BATCHES[task]()


def _peft(_: str, name: str) -> Made:
    peft, transformers = import_module("peft"), import_module("transformers")
    config = getattr(peft, name)
    options = dict(ADAPTERS[name])
    if "target_modules" in inspect.signature(config).parameters:
        options.setdefault("target_modules", ["query", "value"])
    bert = transformers.BertForSequenceClassification(_configured(transformers.BertConfig))
    return peft.get_peft_model(bert, config(task_type="SEQ_CLS", **options)), _texts()


def _timm(_: str, name: str) -> Made:
    model = import_module("timm").create_model(name, num_classes=C)
    return model, _images(model.pretrained_cfg["input_size"][-1])


def _torchvision(_: str, name: str) -> Made:
    return getattr(import_module("torchvision.models"), name)(num_classes=C), _images(64)


_MAKERS: Mapping[str, Callable[[str, str], Made]] = {
    "by hand": _by_hand,
    "transformers": _transformers,
    "peft on BERT": _peft,
    "timm": _timm,
    "torchvision": _torchvision,
}


def _classes(task: str) -> list[str]:
    auto = import_module("transformers.models.auto.modeling_auto")
    found = getattr(auto, TASKS[task]).values()
    flat = (one for name in found for one in ([name] if isinstance(name, str) else name))
    return sorted(set(flat))


def _configured(config: Any) -> Any:
    """A configuration with the sizes that it has a name for."""
    known = set(inspect.signature(config.__init__).parameters) | set(dir(config))
    attributes = set(getattr(config, "attribute_map", {}))
    usable = {key: value for key, value in SIZES.items() if key in known | attributes}
    made = config(**usable)
    made._experts_implementation = "eager"  # grouped products refuse float64
    made.decoder_start_token_id = getattr(made, "decoder_start_token_id", None) or 0
    return made


def _texts() -> list[Batch]:
    batches = []
    for length in (7, 5):
        lengths = torch.tensor([length, 3, length, 2])
        mask = torch.arange(length)[None] < lengths[:, None]
        tokens = torch.randint(3, VOCABULARY, (4, length)) * mask
        tokens[torch.arange(4), lengths - 1] = SIZES["eos_token_id"]  # encoder-decoders read there
        labels = torch.randint(C, (4,))
        batches.append({"input_ids": tokens, "attention_mask": mask.long(), "labels": labels})
    return batches


def _images(side: int = SIDE) -> list[Batch]:
    return [(torch.randn(3, 3, side, side), torch.randint(C, (3,))) for _ in range(2)]


def _sounds() -> list[Batch]:
    return [
        {"input_values": torch.randn(3, length), "labels": torch.randint(C, (3,))}
        for length in (400, 300)
    ]


_BATCHES = {"text": _texts, "image": _images, "audio": _sounds}


def _double(batch: Batch) -> Batch:
    def cast(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    if isinstance(batch, dict):
        return {key: cast(value) for key, value in batch.items()}
    return tuple(cast(value) for value in batch)
