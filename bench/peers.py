"""What the operations are measured against, and the inputs they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vrga_ext import ops, reference
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG


@dataclass(frozen=True)
class Shape:
    """One decode step: B samples, M keys."""

    batch: int
    heads: int
    heads_kv: int
    keys: int
    dim: int

    def __str__(self) -> str:
        return f"B{self.batch} {self.heads}/{self.heads_kv} M{self.keys} D{self.dim}"


SHAPES = (Shape(1, 28, 4, 4096, 128), Shape(1, 16, 2, 16384, 128))
SMOKE_SHAPES = (Shape(1, 14, 2, 512, 64),)


@dataclass
class Inputs:
    """One query row per sample; half of the keys are image tokens, a few of them focus."""

    shape: Shape
    query: Tensor  # [B, Hq, 1, D]
    key: Tensor  # [B, Hkv, M, D]
    value: Tensor  # [B, Hkv, M, D]
    key_flags: Tensor  # [B, M]
    scores: Tensor  # [B, Hq, 1, M]

    @property
    def packed(self) -> Tensor:
        """Queries of one KV head as rows [B, Hkv, G, D]: the fastest form for plain PyTorch."""
        s = self.shape
        return self.query.reshape(s.batch, s.heads_kv, s.heads // s.heads_kv, s.dim)

    @property
    def kv_bytes(self) -> int:
        return 2 * self.key.numel() * self.key.element_size()


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    flags = torch.zeros(shape.batch, shape.keys, dtype=torch.uint8)
    flags[:, shape.keys // 8 : shape.keys // 8 + shape.keys // 2] = IMAGE_FLAG
    focus = torch.rand(flags.shape, generator=generator) < 0.05
    flags[focus & (flags == IMAGE_FLAG)] |= FOCUS_FLAG
    return Inputs(
        shape,
        normal(shape.batch, shape.heads, 1, shape.dim),
        normal(shape.batch, shape.heads_kv, shape.keys, shape.dim),
        normal(shape.batch, shape.heads_kv, shape.keys, shape.dim),
        flags,
        normal(shape.batch, shape.heads, 1, shape.keys),
    )


# Thresholds of the dynamic gate; random heads have R near 1 and H_joint near log M / 2.
MIN_RATIO, ENTROPY_FACTOR, FOCUS_WEIGHT = 0.6, 0.2, 1.5


def vrga(x: Inputs) -> Tensor:
    """The operation, dynamic gate on."""
    return ops.decode_attention(x.query, x.key, x.value, x.key_flags).output


def vrga_off(x: Inputs) -> Tensor:
    """The operation without a flagged key: plain attention."""
    return ops.decode_attention(x.query, x.key, x.value, x.key_flags[:, :0]).output


def sdpa_packed(x: Inputs) -> Tensor:
    """Plain attention, queries grouped by KV head. No VRGA."""
    return scaled_dot_product_attention(x.packed, x.key, x.value).reshape(x.query.shape)


def sdpa_gqa(x: Inputs) -> Tensor:
    """Plain attention as most models call it. No VRGA."""
    return scaled_dot_product_attention(x.query, x.key, x.value, enable_gqa=True)


def materialising_as_written(x: Inputs) -> Tensor:
    """VRGA in vectorised PyTorch, each formula as the method states it; weights stored."""
    a = torch.softmax((x.packed @ x.key.mT).float() * x.shape.dim**-0.5, -1)
    flags = x.key_flags[:, None, None]
    image, focus = (flags & IMAGE_FLAG) != 0, (flags & FOCUS_FLAG) != 0
    a_image = torch.where(image, a, 0.0)
    share = a_image.sum(-1, keepdim=True)
    ratio = share * a.shape[-1] / image.sum(-1, keepdim=True)
    inside = a_image / share
    entropy = -(inside * torch.log(inside + 1e-8)).sum(-1)  # H_img, which the operation returns
    assert entropy.shape == ratio.shape[:-1]
    joint = -(a_image * torch.log(a_image + 1e-8)).sum(-1, keepdim=True)
    gate = (ratio > MIN_RATIO) & (ratio > ENTROPY_FACTOR * joint)
    weighted = a * torch.where(gate & focus, FOCUS_WEIGHT, 1.0)
    weighted = weighted / weighted.sum(-1, keepdim=True)
    return (weighted.to(x.value.dtype) @ x.value).reshape(x.query.shape)


def materialising(x: Inputs) -> Tensor:
    """The same with fewer passes: one entropy from the other, weights only where gated."""
    scores = (x.packed @ x.key.mT).float() * x.shape.dim**-0.5
    probabilities = _reweight(torch.softmax(scores, -1), x.key_flags[:, None, None])
    return (probabilities.to(x.value.dtype) @ x.value).reshape(x.query.shape)


def materialising_softmax(x: Inputs) -> Tensor:
    """Reweighted softmax in vectorised PyTorch."""
    weights = _reweight(torch.softmax(x.scores.float(), -1), x.key_flags[:, None, None])
    return weights.to(x.scores.dtype)


def materialising_rows(x: Inputs) -> Tensor:
    """Image attention and statistics of one row per sample in vectorised PyTorch."""
    scores = (x.packed @ x.key.mT).float() * x.shape.dim**-0.5
    a = torch.softmax(scores, -1)
    _statistics(a, (x.key_flags[:, None, None] & IMAGE_FLAG).float())
    return torch.where((x.key_flags[:, None, None] & IMAGE_FLAG) != 0, a, 0.0)


def _statistics(a: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a_image = a * image
    share = a_image.sum(-1, keepdim=True)
    joint = torch.special.entr(a_image).sum(-1, keepdim=True)
    ratio = share * (a.shape[-1] / image.sum(-1, keepdim=True))
    return ratio, joint / share + share.log(), joint


def _reweight(a: Tensor, flags: Tensor) -> Tensor:
    ratio, _, joint = _statistics(a, (flags & IMAGE_FLAG).float())
    gate = (ratio > MIN_RATIO) & (ratio > ENTROPY_FACTOR * joint)
    weighted = a * torch.where((flags & FOCUS_FLAG) != 0, FOCUS_WEIGHT, 1.0)
    return torch.where(gate, weighted / weighted.sum(-1, keepdim=True), a)


def row_statistics(x: Inputs) -> Tensor:
    """The operation."""
    return ops.row_statistics(x.query[:, :, 0], x.key, x.key_flags).image_attention


def reweighted_softmax(x: Inputs) -> Tensor:
    """The operation."""
    return ops.reweighted_softmax(x.scores, x.key_flags).probabilities


Peer = Callable[[Inputs], Tensor]

DECODE_PEERS: dict[str, Peer] = {
    "vrga_ext": vrga,
    "vrga_ext, no flagged key": vrga_off,
    "SDPA packed, no VRGA": sdpa_packed,
    "SDPA enable_gqa, no VRGA": sdpa_gqa,
    "PyTorch VRGA, weights stored": materialising_as_written,
    "PyTorch VRGA, tuned": materialising,
}
# Without enable_gqa: it repeats K and V for every query head, which empties the caches for whoever
# comes next.
INTERLEAVED_PEERS = {n: p for n, p in DECODE_PEERS.items() if p is not sdpa_gqa}
ROW_PEERS: dict[str, Peer] = {
    "vrga_ext": row_statistics,
    "PyTorch, weights stored": materialising_rows,
}
SOFTMAX_PEERS: dict[str, Peer] = {
    "vrga_ext": reweighted_softmax,
    "PyTorch": materialising_softmax,
}

_PLAIN = ("vrga_ext, no flagged key", "SDPA packed, no VRGA", "SDPA enable_gqa, no VRGA")


def check(x: Inputs, name: str, result: Tensor) -> None:
    """Refuse to time what is wrong: against the reference in fp64, in the dtype's own precision."""
    q, k, v, s = (t.double() for t in (x.query, x.key, x.value, x.scores))
    if result.shape == x.query.shape:
        flags = x.key_flags[:, :0] if name in _PLAIN else x.key_flags
        expected = reference.decode_attention(q, k, v, flags).output
    elif result.shape == x.scores.shape:
        expected = reference.reweighted_softmax(s, x.key_flags).probabilities
    else:
        rows = reference.row_statistics(q[:, :, 0], k, x.key_flags)
        expected = rows.image_attention.reshape(result.shape)
    relative = max(8 * torch.finfo(x.query.dtype).eps, 1e-5)
    tolerance = relative * expected.abs().max()
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance.item())
