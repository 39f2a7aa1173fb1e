"""Shapes and random inputs of the operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

FOCUS_WEIGHT = 1.5
# Random heads have R_img near 1 and H_joint of some nats: with these the dynamic gate is open with
# a margin, in every dtype.
MIN_RATIO, ENTROPY_FACTOR = 0.6, 0.05


@dataclass(frozen=True)
class Shape:
    """One decode step: B samples, Hq/Hkv heads, M keys."""

    batch: int
    heads: int
    heads_kv: int
    keys: int
    dim: int

    def __str__(self) -> str:
        return f"B{self.batch} {self.heads}/{self.heads_kv} M{self.keys} D{self.dim}"


@dataclass(frozen=True)
class Case:
    """A shape, a dtype, and which keys are used, image and question-relevant tokens.

    Parameters
    ----------
    image_share
        Share of the keys that are image tokens, from an eighth of the way on.
    focus_share
        Share of the image tokens that are boosted.
    contiguous
        Boosted tokens as one run, else scattered at random.
    gated_heads
        Heads that may be gated, the first ones; None is all.
    filled
        Share of the keys that are used: the others are a static cache's free end, which a mask
        leaves out. None is all, without a mask.
    """

    shape: Shape
    dtype: str
    image_share: float = 0.5
    focus_share: float = 0.05
    contiguous: bool = False
    gated_heads: int | None = None
    filled: float | None = None

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"

    @property
    def used_keys(self) -> int:
        """Keys that are attended to."""
        return self.shape.keys if self.filled is None else round(self.filled * self.shape.keys)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V together, as far as they are used."""
        return self._bytes_of(self.used_keys)

    @property
    def held_bytes(self) -> int:
        """Bytes of K and V together in memory."""
        return self._bytes_of(self.shape.keys)

    def _bytes_of(self, keys: int) -> int:
        s = self.shape
        return 2 * s.batch * s.heads_kv * keys * s.dim * getattr(torch, self.dtype).itemsize

    @property
    def scores_bytes(self) -> int:
        """Bytes of the scores that a softmax is given."""
        s = self.shape
        return s.batch * s.heads * s.keys * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Inputs:
    """One query row per sample."""

    query: Tensor  # [B, Hq, 1, D]
    row: Tensor  # [B, Hq, D], the same
    key: Tensor  # [B, Hkv, M, D]; [B, Hkv, 0, D] for the softmax
    value: Tensor  # the same
    flags: Tensor  # uint8 [B, M]
    heads: Tensor | None  # bool [B, Hq]
    mask: Tensor | None  # bool [B, 1, 1, M]
    scores: Tensor  # [B, Hq, 1, M], for the softmax only
    bias: Tensor  # [B, 1, 1, M], ln(weight): what a static gate in all heads amounts to

    @property
    def packed(self) -> Tensor:
        """Queries of one KV head as rows, [B, Hkv, G, D]: K and V are then read once."""
        batch, _, _, dim = self.query.shape
        return self.query.reshape(batch, self.key.shape[1], -1, dim)

    @property
    def image(self) -> Tensor:
        """bool [B, 1, 1, M]"""
        return (self.flags[:, None, None] & IMAGE_FLAG) != 0

    @property
    def focus(self) -> Tensor:
        """bool [B, 1, 1, M]"""
        return (self.flags[:, None, None] & FOCUS_FLAG) != 0


def make_inputs(case: Case, device: str, seed: int = 0, scores_only: bool = False) -> Inputs:
    """Random inputs; half of the keys are image tokens unless the case says otherwise.

    ``scores_only`` leaves K and V empty: a softmax takes scores, and many sets of them.
    """
    shape, dtype = case.shape, getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    flags = torch.zeros(shape.batch, shape.keys, dtype=torch.uint8, device=device)
    tokens = round(case.image_share * shape.keys)
    start = min(shape.keys // 8, shape.keys - tokens)
    image = flags[:, start : start + tokens]
    image.fill_(IMAGE_FLAG)
    boosted = round(case.focus_share * tokens)
    if case.contiguous:
        image[:, :boosted] |= FOCUS_FLAG
    else:
        order = torch.randperm(tokens, generator=generator, device=device)
        image[:, order[:boosted]] |= FOCUS_FLAG
    heads = None
    if case.gated_heads is not None:
        heads = torch.arange(shape.heads, device=device) < case.gated_heads
        heads = heads.expand(shape.batch, -1).contiguous()
    mask = None
    if case.filled is not None:
        mask = torch.arange(shape.keys, device=device) < case.used_keys
        mask = mask.expand(shape.batch, 1, 1, -1).contiguous()
    bias = ((flags & FOCUS_FLAG) != 0) * math.log(FOCUS_WEIGHT)
    query = normal(shape.batch, shape.heads, 1, shape.dim)
    key, value = (
        normal(shape.batch, shape.heads_kv, 0 if scores_only else shape.keys, shape.dim)
        for _ in range(2)
    )
    return Inputs(
        query,
        query[:, :, 0],
        key,
        value,
        flags,
        heads,
        mask,
        normal(shape.batch, shape.heads, 1, shape.keys),
        bias.to(dtype)[:, None, None],
    )
