"""``python -m experiments.privacy.tokens``: tokens from a small text model's gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.cases import SEEDS, Case, Fresh, OutFolder, Row, measure_cases, rows_of, show
from experiments.privacy.text import TextClassifier, zipf_sentences
from fedsens.audit import (
    AttackBudget,
    get_attack,
    occurring,
    recall_and_precision,
    view_of_gradient,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, select_mask
from fedsens.sensitivity import SensitivityMap, sensitivity_map

RESULTS = Path(__file__).parent / "results"
VOCABULARY, LENGTH, WIDTH, CLASSES = 2000, 12, 64, 4
SENTENCES = 2  # of a batch
CALIBRATION = 256  # sentences for the map
POLICIES = ("sensitivity", "gradient", "random", "critical_layers", "first_layers")
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
FIGURES = ("embedding", "span", "both", "absent", "precision", "guess")
LINEARS = ("query", "key", "value")
EMBEDDINGS = ("embedding", "position")
FORCED = {  # what is encrypted whole, the rest of the ratio by sensitivity
    "embedding": EMBEDDINGS,
    "query, key, value": ("before", *LINEARS),
    "embedding and first block": (*EMBEDDINGS, "before", *LINEARS, "out"),
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    batches: Annotated[int, typer.Option(min=1, help="Batches to attack.")] = 40,
    fresh: Fresh = False,
) -> None:
    """Recover the tokens of batches of two sentences under masks."""
    torch.set_num_threads(1)
    shapes: list[Case] = [{"policy": "none", "ratio": 0.0, "force": ""}]
    shapes += [{"policy": p, "ratio": r, "force": ""} for p in POLICIES for r in RATIOS]
    shapes += [{"policy": "sensitivity", "ratio": _share(f), "force": f} for f in FORCED]
    shapes += [{"policy": "all", "ratio": 1.0, "force": ""}]
    setting = lru_cache(maxsize=1)(lambda seed: _Setting(batches, seed))
    cases = [{"batches": batches, "seed": seed} | shape for seed in SEEDS for shape in shapes]
    each = measure_cases(
        cases, lambda case: setting(int(case["seed"])).measure(case), "tokens", out, fresh
    )
    rows = [shape | averaged(rows_of(each, shape)) for shape in shapes]
    show(
        f"Tokens of {batches} batches of {SENTENCES} x {LENGTH} for each of {len(SEEDS)} seeds",
        ("encrypted", "ratio", "embedding", "span", "both", "absent", "precision"),
        (_line(row) for row in rows),
        "share of the tokens found (absent: of those not in the data of the map); naming the most "
        f"frequent ones finds {rows[0]['guess']:.2f}; shares of two seeds differ by at most "
        f"{spread(each):.2f}",
    )


class _Setting:
    """A model, its maps, and batches to attack."""

    def __init__(self, batches: int, seed: int) -> None:
        self._seed = seed
        self._model = TextClassifier(VOCABULARY, LENGTH, WIDTH, CLASSES, seed)
        self._layout = ParameterLayout.from_state_dict(self._model.state_dict())
        generator = torch.Generator().manual_seed(seed)
        self._known = _labelled(CALIBRATION, generator)
        self._batches = [_labelled(SENTENCES, generator) for _ in range(batches)]
        self._memo: dict[Any, Any] = {}
        self._scores = cache(self._map)

    def measure(self, case: Case) -> Iterable[Row]:
        mask = self._mask(str(case["policy"]), float(case["ratio"]), str(case["force"]))
        absent = ~_present(self._known[0])
        figures = [self._attack(mask, tokens, labels, absent) for tokens, labels in self._batches]
        yield {name: _mean([f[name] for f in figures]) for name in figures[0]}

    def _mask(self, policy: str, ratio: float, force: str) -> EncryptionMask:
        rule = "true_label" if policy == "gradient" else "vector"
        scores = self._scores(rule) if "scores" in get_policy(policy).needs else None
        return select_mask(
            scores, self._layout, policy, ratio, FORCED.get(force, ()), seed=self._seed
        )

    def _map(self, rule: str) -> SensitivityMap:
        return sensitivity_map(self._model, [self._known], rule=rule)

    def _attack(
        self, mask: EncryptionMask, tokens: Tensor, labels: Tensor, absent: Tensor
    ) -> dict[str, float | None]:
        named = dict(self._model.named_parameters())
        loss = cross_entropy(self._model(tokens), labels)
        made = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        view = view_of_gradient(
            self._model, made, mask, self._layout, (LENGTH,), CLASSES, SENTENCES
        )
        view = replace(view, public=self._known, memo=self._memo)
        true, budget = _present(tokens), AttackBudget(1, 1, torch.Generator())
        embedding, span = (get_attack(name).run(view, budget) for name in ("embedding", "span"))
        both = embedding | span
        recall, precision = recall_and_precision(both, true)
        new = true & absent
        likely = torch.arange(VOCABULARY) < true.sum()
        return {
            "embedding": recall_and_precision(embedding, true)[0],
            "span": recall_and_precision(span, true)[0],
            "both": recall,
            "absent": recall_and_precision(both, new)[0] if new.any() else None,
            "precision": precision if both.any() else None,
            "guess": recall_and_precision(likely, true)[0],
        }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(sum(there) / len(there), 5) if there else None


def averaged(rows: Sequence[Row]) -> Row:
    """The mean of each figure over the rows of one shape, one for each seed."""
    return {name: _mean([row[name] for row in rows]) for name in FIGURES}


def spread(rows: Sequence[Row]) -> float:
    """The largest difference in a share that is found between two seeds of one shape."""
    most = 0.0
    for row in rows:
        shape = {name: row[name] for name in ("policy", "ratio", "force")}
        for name in FIGURES[:4]:
            own = [each[name] for each in rows_of(rows, shape) if each[name] is not None]
            most = max(most, max(own, default=0.0) - min(own, default=0.0))
    return most


def _labelled(sentences: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens = zipf_sentences(sentences, LENGTH, VOCABULARY, generator)
    return tokens, torch.randint(CLASSES, (sentences,), generator=generator)


def _present(tokens: Tensor) -> Tensor:
    return occurring(tokens, VOCABULARY)


def _share(force: str) -> float:
    """The smallest ratio, in thousandths, that holds what is forced."""
    model = TextClassifier(VOCABULARY, LENGTH, WIDTH, CLASSES)
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    held = sum(size for name, size in sizes.items() if name.split(".")[0] in FORCED[force])
    return float(math.ceil(1000 * held / sum(sizes.values())) / 1000)


def _line(row: Row) -> Sequence[str]:
    name = f"+ {row['force']}" if row["force"] else str(row["policy"])
    cells = ["-" if row[part] is None else f"{row[part]:.2f}" for part in FIGURES[:-1]]
    return [name, f"{row['ratio']:g}", *cells]


if __name__ == "__main__":
    app()
