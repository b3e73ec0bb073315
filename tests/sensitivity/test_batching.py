"""Batches as data loaders give them, and models as Hugging Face writes them."""

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsens.errors import SensitivityError
from fedsens.sensitivity import next_token_batches, reference_map, sensitivity_map
from tests.sensitivity.samples import assert_same, difference, images, mini_cnn

ENGINES = ["auto", "capture", "func", "loop"]
VOCABULARY, LENGTH, C = 7, 4, 3


class Output(OrderedDict):
    """Mimics the output class of transformers: a mapping whose keys are attributes too."""

    __getattr__ = OrderedDict.__getitem__


class Bare:
    """An output that has logits and is no mapping."""

    def __init__(self, logits):
        self.logits = logits


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, a, b, c=None):
        return self.head(a) * b + (0 if c is None else c)


class Bert(nn.Module):
    """The arguments and the output of a sequence classifier of transformers."""

    def __init__(self, output=Output, per_token=False):
        super().__init__()
        self.embed, self.kinds = nn.Embedding(VOCABULARY, 4), nn.Embedding(2, 4)
        self.head = nn.Linear(4, C)
        self.output, self.per_token = output, per_token

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        assert labels is None
        hidden = torch.tanh(self.embed(input_ids) + self.kinds(token_type_ids))
        if not self.per_token:
            weights = attention_mask.to(hidden.dtype)[..., None]
            hidden = (hidden * weights).sum(1) / weights.sum(1)
        return self.output(logits=self.head(hidden))


def bert(**options):
    torch.manual_seed(0)
    return Bert(**options).double()


def encoding(samples=5, per_token=False):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, LENGTH + 1, (samples, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    labels = torch.randint(C, (samples, LENGTH) if per_token else (samples,), generator=generator)
    return {
        "input_ids": torch.randint(VOCABULARY, (samples, LENGTH), generator=generator) * mask,
        "token_type_ids": torch.randint(2, (samples, LENGTH), generator=generator),
        "attention_mask": mask,
        "labels": labels.where(mask > 0, -100) if per_token else labels,
    }


def split(batch):
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]


Triple = namedtuple("Triple", "a b target")


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_of_several_tensors(engine):
    torch.manual_seed(0)
    model = Several().double()
    a, b, y = torch.randn(5, 3).double(), torch.rand(5, 1).double(), torch.randint(3, (5,))
    expected = reference_map(model, [(a, y)], forward=lambda model, x: model(x, b[:1] * 0 + 1))
    ones = torch.ones_like(b)
    for batch in [
        ((a, ones), y),
        ([a, ones], y),
        ({"a": a, "b": ones}, y),
        (a, ones, y),
        [a, ones, 0 * ones, y],
        Triple(a, ones, y),
        {"a": a, "b": ones, "label": y},
        UserDict({"b": ones, "labels": y, "a": a}),
    ]:
        assert_same(sensitivity_map(model, [batch], engine=engine), expected)
    assert difference(sensitivity_map(model, [(a, b, y)], engine=engine), expected) > 1e-3


def test_loaders_of_tuples_and_of_dicts():
    torch.manual_seed(0)
    model = Several().double()
    a, b, y = torch.randn(7, 3).double(), torch.rand(7, 1).double(), torch.randint(3, (7,))
    whole = reference_map(model, [((a, b), y)])
    tuples = DataLoader(TensorDataset(a, b, y), batch_size=3, shuffle=True)
    assert_same(sensitivity_map(model, tuples), whole)
    rows = [{"a": a[k], "b": b[k], "label": y[k]} for k in range(7)]
    assert_same(sensitivity_map(model, DataLoader(rows, batch_size=2)), whole)


@pytest.mark.parametrize("output", [Output, Bare, dict])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_classifier_with_attention_masks(engine, output):
    model, batch = bert(output=output), encoding()
    expected = reference_map(bert(), [split(batch)])
    assert_same(sensitivity_map(model, [batch], engine=engine), expected)
    unmasked = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert difference(sensitivity_map(model, [unmasked], engine=engine), expected) > 1e-3


@pytest.mark.parametrize("rule", ["vector", "true_label"])
@pytest.mark.parametrize("engine", ENGINES)
def test_ignored_positions_do_not_count(engine, rule):
    model, batch = bert(per_token=True), encoding(per_token=True)
    options = {"loss": "token_cross_entropy", "rule": rule}
    smap = sensitivity_map(model, [batch], engine=engine, **options)
    assert_same(smap, reference_map(model, [split(batch)], **options))
    changed = batch["input_ids"].where(batch["labels"] != -100, VOCABULARY - 1)
    assert not torch.equal(changed, batch["input_ids"])
    assert_same(sensitivity_map(model, [batch | {"input_ids": changed}], **options), smap)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY)

    def forward(self, input_ids):
        return Bare(self.head(torch.tanh(self.embed(input_ids)).cumsum(1)))


def test_next_token_labels_move_by_one():
    torch.manual_seed(0)
    model, tokens = Causal().double(), torch.randint(1, VOCABULARY, (3, 5))
    labels = tokens.clone()
    labels[0, 3:] = -100
    batches = [{"input_ids": tokens, "labels": labels}]
    moved = next_token_batches(batches)
    smap = sensitivity_map(model, moved, "token_cross_entropy", "true_label")
    means = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, label in zip(tokens, labels, strict=True):  # as transformers shifts logits and labels
        logits = model(row[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, label[1:])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for mean, grad in zip(means.values(), grads, strict=True):
            mean += grad.abs() / 3
    for name, value in smap.mean().items():
        torch.testing.assert_close(value, means[name])


CNN_IMAGES, LABELS = torch.zeros(2, 1, 6, 6), torch.zeros(2).long()
RAGGED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
WRONG = {
    "tensor": (CNN_IMAGES, r"tuples \(inputs, ..., labels\) or mappings with labels, got Tensor"),
    "alone": ((CNN_IMAGES,), "got tuple; convert"),
    "no-labels": ({"img": CNN_IMAGES}, "either labels or label, got a mapping of img; give tuples"),
    "two-labels": ({"x": CNN_IMAGES, "label": LABELS, "labels": LABELS}, "got a mapping of x, "),
    "labels-only": ({"label": LABELS}, "expected a batch of inputs and"),
    "listed-labels": ((CNN_IMAGES, [0, 1]), "labels as a tensor, got list"),
    "strings": (
        {"x": CNN_IMAGES, "text": ["a", "b"], "label": LABELS},
        r"a tensor as inputs\['text'\]\[0\], got str; .*remove_columns",
    ),
    "none": (
        {"x": CNN_IMAGES, "mask": None, "label": LABELS},
        r"a tensor as inputs\['mask'\], got NoneType",
    ),
    "string": (("image", LABELS), "a tensor as inputs, got str"),
    "lengths": ((CNN_IMAGES, torch.zeros(3).long()), "samples on the first axis"),
    "scalar": ((torch.zeros(()), LABELS), "samples on the first axis"),
    "scalar-label": ((CNN_IMAGES, LABELS[0]), "samples on the first axis"),
    "sparse": ((CNN_IMAGES.to_sparse(), LABELS), r"expected dense tensors.*to_dense\(\)"),
    "nested": ((RAGGED, LABELS), "to_padded_tensor with a mask"),
    "argument": (
        {"img": CNN_IMAGES, "label": LABELS},
        r"the model's arguments input, got img \(missing .*\); rename .* forward=",
    ),
    "arguments": (
        (CNN_IMAGES, CNN_IMAGES, LABELS),
        r"got 2 without names \(too many positional arguments\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_batches_are_named(case):
    batch, message = WRONG[case]
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(mini_cnn(dtype=torch.float32), [batch])


def test_an_error_of_the_model_itself_is_told_and_kept():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) + "1"

    with pytest.raises(
        SensitivityError, match=r"one sample by itself.*\n.*unsupported operand"
    ) as told:
        sensitivity_map(Broken(3, 3), [(torch.randn(2, 3), torch.tensor([0, 1]))])
    assert isinstance(told.value.__cause__, TypeError)


def test_forward_takes_any_batch():
    model, (x, y) = mini_cnn(), images()
    batches = [{"img": x, "label": y}]
    got = sensitivity_map(model, batches, forward=lambda model, x: model(x["img"]))
    assert_same(got, sensitivity_map(model, [(x, y)]))


class TinyForCausalLM(nn.Module):
    """What a causal language model of Hugging Face is called, and takes."""

    def __init__(self, encodes=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.config = SimpleNamespace(is_encoder_decoder=encodes)

    def forward(self, input_ids, decoder_input_ids=None):
        tokens = input_ids if decoder_input_ids is None else decoder_input_ids
        return {"logits": self.head(torch.tanh(self.embed(tokens).cumsum(1)))}


class Tiny(TinyForCausalLM):
    """Another model with the same arguments."""


def test_labels_of_a_causal_model_that_have_not_moved_are_refused():
    ids = torch.tensor([[1, 2, 3], [3, 0, 4]])
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}
    with pytest.raises(SensitivityError, match=r"next_token_batches\(batches\)"):
        sensitivity_map(TinyForCausalLM(), [batch], "token_cross_entropy")
    wrapped = nn.ModuleDict({"model": TinyForCausalLM()})
    options = {"forward": lambda model, x: model["model"](**x)["logits"]}
    with pytest.raises(SensitivityError, match="next_token_batches"):
        sensitivity_map(wrapped, [batch], "token_cross_entropy", **options)
    moved = next_token_batches([batch])
    assert sensitivity_map(TinyForCausalLM(), moved, "token_cross_entropy").count == 2
    assert sensitivity_map(Tiny(), [batch], "token_cross_entropy").count == 2


def test_an_encoder_decoder_without_input_for_its_decoder_is_refused():
    ids = torch.tensor([[1, 2, 3], [3, 0, 4]])
    batch = {"input_ids": ids, "labels": ids.flip(1)}
    with pytest.raises(SensitivityError, match=r"DataCollatorForSeq2Seq\(tokenizer, model=model"):
        sensitivity_map(Tiny(encodes=True), [batch], "token_cross_entropy")
    whole = batch | {"decoder_input_ids": ids}
    assert sensitivity_map(Tiny(encodes=True), [whole], "token_cross_entropy").count == 2
