"""VRGA head by head in Python, the way the method's released code works: own writing.

Weights of every head are stored, each head's statistics are read on the host, and the row is
changed in place. Three host reads per head and generated token, five per head of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.inputs import ENTROPY_FACTOR, FOCUS_WEIGHT, MIN_RATIO, Inputs

EPSILON = 1e-12


def weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention weights [B, Hq, Sq, M] with K repeated for every query head, as eager attention."""
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query @ repeated.mT) * query.shape[-1] ** -0.5
    return torch.softmax(scores, -1, dtype=torch.float32)


def boost_rows(a: Tensor, image: Tensor, focus: Tensor) -> None:
    """Reweight the last row of every gated head of one sample in place.

    ``a`` [Hq, Sq, M]; ``image`` and ``focus`` are positions, int64.
    """
    for head in range(a.shape[0]):
        row = a[head, -1]
        on_image = row[image]
        ratio = (on_image.mean() / row.mean()).item()
        joint = (-(on_image * torch.log(on_image + EPSILON)).sum()).item()
        share = on_image.sum().item()
        if share > 0 and ratio > MIN_RATIO and ratio > ENTROPY_FACTOR * joint:
            row[focus] *= FOCUS_WEIGHT
            row /= row.sum()


def read_rows(a: Tensor, image: Tensor) -> list[tuple[float, float, float]]:
    """Ratio, entropy and their quotient for every head of one sample; ``a`` [Hq, M]."""
    found = []
    for head in range(a.shape[0]):
        row = a[head]
        on_image = row[image]
        mean_image, mean_all = on_image.mean().item(), row.mean().item()
        inside = on_image / (on_image.sum() + EPSILON)
        entropy = (-(inside * torch.log(inside + EPSILON)).sum()).item()
        ratio = torch.tensor(mean_image / (mean_all + EPSILON))
        found.append((ratio.item(), entropy, (entropy / (ratio + EPSILON)).item()))
    return found


def decode_attention(x: Inputs) -> Tensor:
    """Output [B, Hq, 1, D]."""
    a = weights(x.query, x.key)
    _boost(a, x)
    value = x.value.repeat_interleave(x.query.shape[1] // x.key.shape[1], 1)
    return a.to(value.dtype) @ value


def row_statistics(x: Inputs) -> Tensor:
    """Image attention [B, Hq, M]."""
    a = weights(x.query, x.key)[:, :, 0]
    for sample in range(a.shape[0]):
        read_rows(a[sample], x.image[sample, 0, 0].nonzero()[:, 0])
    return a * x.image[:, 0]


def reweighted_softmax(x: Inputs) -> Tensor:
    """Probabilities [B, Hq, 1, M]."""
    a = torch.softmax(x.scores, -1, dtype=torch.float32)
    _boost(a, x)
    return a.to(x.scores.dtype)


def _boost(a: Tensor, x: Inputs) -> None:
    for sample in range(a.shape[0]):
        image, focus = (m[sample, 0, 0].nonzero()[:, 0] for m in (x.image, x.focus))
        boost_rows(a[sample], image, focus)
