"""Labels from what is visible of an update: of one image, and the histogram of many."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fedsens.audit._attack import AttackView
from fedsens.audit._learned import public_gradients, visible

SUM = 1e3  # weight of the equation that the shares add up to 1, relative to all others


def label_scores(view: AttackView) -> Tensor | None:
    """A score of each class, lower where more images have it (Zhao et al. 2020, iDLG).

    With cross-entropy the gradient by the logits is softmax - onehot, so that of the last layer's
    bias is negative for the classes of the images only. Where the bias is masked, the visible
    weights of the class's row say the same, up to the sign of the layer's inputs, which follow a
    sigmoid or ReLU as a rule.

    Returns:
        Vector of ``classes`` scores, NaN for classes of which nothing is visible; None where there
        is no such layer, or nothing of it is visible.
    """
    heads = [name for name, g in view.gradients.items() if g.shape[:1] == (view.classes,)]
    if not heads:
        return None
    bias = next((n for n in reversed(heads) if view.gradients[n].ndim == 1), None)
    weight = next((n for n in reversed(heads) if view.gradients[n].ndim == 2), None)
    scores = torch.full((view.classes,), torch.nan)
    if weight is not None:
        scores = view.gradients[weight].nanmean(dim=1)
        size = scores.abs().nan_to_num().max().clamp_min(1e-30)
        scores = scores / size
    if bias is not None:
        known = view.gradients[bias]
        size = known.abs().nan_to_num().max().clamp_min(1e-30)
        scores = torch.where(known.isnan(), scores, known / size)
    return None if scores.isnan().all() else scores


def infer_label(view: AttackView) -> int | None:
    """The label of a single image: the class with the lowest score.

    A class of which nothing is visible is chosen only if every visible one has a positive score.
    """
    scores = label_scores(view)
    if scores is None:
        return None
    hidden = scores.isnan().nonzero().flatten()
    lowest = int(scores.nan_to_num(torch.inf).argmin())
    if scores[lowest] >= 0 and len(hidden):
        return int(hidden[0]) if len(hidden) == 1 else None
    return lowest


def inferred_labels(view: AttackView) -> Tensor | None:
    """The labels of an update's images, as many as there are."""
    if view.batch == 1:
        label = infer_label(view)
        return None if label is None else torch.tensor([label])
    shares = label_shares(view)
    if shares is None:
        return None
    return torch.arange(len(shares)).repeat_interleave(_counts(shares, view.batch))


def label_shares(view: AttackView) -> Tensor | None:
    """The share of each class among the images of an update.

    A mean gradient is the mean of what its classes contribute. What a class contributes is taken
    from public images under the same model; the shares are the non-negative least-squares fit,
    each coordinate weighed by how much it varies within a class and by the noise in it. Only the
    last layer is used where anything of it is visible: it tells classes apart best.

    Returns:
        Vector of ``classes`` shares that add up to 1; None where nothing visible tells, or without
        public images.
    """
    kept = public_gradients(view)
    known, values = visible(view)
    if kept is None or not known.any():
        return None
    head = known & _head(view)
    used = head if head.any() else known
    rows, _, y = kept
    key = ("labels", used.numpy().tobytes())
    if key not in view.memo:
        view.memo[key] = _classes(rows[:, used], y)
    present, means, within = view.memo[key]
    wanted = values[used].double()
    spread = (within / view.batch + view.noise**2).sqrt()
    telling = spread > 1e-9 * spread.max()
    if not telling.any():
        return None
    system = (means / spread)[:, telling].T.numpy()
    target = (wanted / spread)[telling].numpy()
    size = SUM * max(1.0, float(np.linalg.norm(system)))
    system = np.vstack([system, np.full((1, len(present)), size)])
    found, _ = nnls(system, np.append(target, size))
    shares = torch.zeros(view.classes, dtype=torch.float64)
    shares[present] = torch.from_numpy(found)
    return shares / shares.sum().clamp_min(1e-30)


def share_error(found: Tensor | None, labels: Tensor, classes: int) -> tuple[float, float]:
    """Total-variation distance of shares from the truth, and that of a uniform guess, from 0 to 1.

    For one image the first is 0 if its label is certain.
    """
    true = torch.bincount(labels, minlength=classes).double() / len(labels)
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    away = [float((each - true).abs().sum() / 2) for each in (uniform, found) if each is not None]
    return away[-1], away[0]


def label_accuracy(found: Tensor | None, labels: Tensor) -> float:
    """Overlap of labels, from 0 to 1, if as many are named as there are images."""
    if found is None:
        return 0.0
    true = torch.bincount(labels, minlength=len(found))
    return float(torch.minimum(_counts(found, len(labels)), true).sum()) / len(labels)


def _counts(shares: Tensor, count: int) -> Tensor:
    """Whole numbers that add up to a count, by largest remainders."""
    whole = (shares * count).floor()
    rest = (shares * count - whole).argsort(descending=True, stable=True)
    whole[rest[: count - int(whole.sum())]] += 1
    return whole.long()


def _classes(rows: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes that there are, the mean row of each, and the variance within them."""
    present = torch.unique(y)
    means = torch.stack([rows[y == label].double().mean(dim=0) for label in present])
    within = torch.zeros(rows.shape[1], dtype=torch.float64)
    for label, mean in zip(present, means, strict=True):
        within += (rows[y == label].double() - mean).square().sum(dim=0)
    return present, means, within / len(rows)


def _head(view: AttackView) -> Tensor:
    names = [name for name, g in view.gradients.items() if g.shape[:1] == (view.classes,)][-2:]
    parts = [torch.full((g.numel(),), name in names) for name, g in view.gradients.items()]
    return torch.cat(parts)
