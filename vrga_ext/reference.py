r"""The specification of the three native operations, in plain PyTorch.

Scores are materialised and softmax is taken over all keys, so every line can be held against a
formula. Computation runs in fp64 for fp64 input and in fp32 otherwise. Symbols, per sample, head
and query:

    s_j   scaled score plus mask              m = max s_j,  p_j = exp(s_j - m)
    w_j   weight of key j for a gated head    ``focus_weight`` on T_q, ``image_weight`` on other
                                              image keys, 1 on text
    Z     = sum p_j                           Z_V = sum_V p_j          S_V = sum_V p_j (s_j - m)
    R_img = (Z_V / Z) * M / n                 M attended keys, n = |V| attended image keys
    H_img = log Z_V - S_V / Z_V               entropy inside the image (nats)
    H_joint = (Z_V log Z - S_V) / Z           -sum_V a_j log a_j (nats)
    out   = (O + g O_delta) / (Z + g Z_delta) g = 1 for a gated head
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrga_ext.gate import Gate, GateKind

IMAGE_FLAG = 1  # bit 0 of ``key_flags``: the key is an image token (V)
FOCUS_FLAG = 2  # bit 1 of ``key_flags``: the key is question-relevant (T_q, as boosted)

# A share of the attention below this counts as 0: in fp32 it is noise of p_j that underflow.
LEAST_SHARE = 2.0**-100


class HeadStatistics(NamedTuple):
    """Statistics of attention on the image, per head (paper section 3).

    Of :func:`row_statistics`, which reads one query per sample, the shapes are [B, Hq].

    Attributes
    ----------
    image_ratio : float32 or float64 [B, Hq, Sq]
        R_img, mean attention on image keys over mean attention (no unit).
    image_entropy : float32 or float64 [B, Hq, Sq]
        H_img, entropy of the attention renormalised inside the image (nats).
    joint_entropy : float32 or float64 [B, Hq, Sq]
        H_joint, the image keys' part of the entropy over all keys (nats).

    Examples
    --------
    >>> flags = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    >>> found = row_statistics(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2), flags).statistics
    >>> found.image_ratio, found.image_entropy  # log 2
    (tensor([[1.]]), tensor([[0.6931]]))
    """

    image_ratio: Tensor
    image_entropy: Tensor
    joint_entropy: Tensor


class DecodeResult(NamedTuple):
    """Result of :func:`decode_attention`.

    Attributes
    ----------
    output : [B, Hq, Sq, Dv]
        The attention's output, in the dtype of the query.
    per_head : float32 [B, Hq, Sq, 4], float64 of float64 input
        R_img, H_img (nats), H_joint (nats), and 1 where the head was reweighted, else 0.
        ``statistics`` and ``gate`` are views of it.

    Examples
    --------
    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2), torch.eye(4)[None, None]
    >>> flags = torch.tensor([[1, 3, 0, 0]], dtype=torch.uint8)
    >>> result = decode_attention(q, k, v, flags, gate="static", focus_weight=2.0)
    >>> result.gate, result.statistics.image_ratio
    (tensor([[[True]]]), tensor([[[1.]]]))
    """

    output: Tensor
    per_head: Tensor

    @property
    def statistics(self) -> HeadStatistics:
        """Views of ``per_head``."""
        return HeadStatistics(*self.per_head[..., :3].unbind(-1))

    @property
    def gate(self) -> Tensor:
        """Whether the head was reweighted, bool [B, Hq, Sq]."""
        return self.per_head[..., 3] != 0


class RowResult(NamedTuple):
    """Result of :func:`row_statistics`.

    Attributes
    ----------
    image_attention : float32 [B, Hq, N], float64 of float64 input
        Attention on each of the N keys that have flags; 0 where the key is no attended image key.
    per_head : float32 [B, Hq, 3], float64 of float64 input
        R_img, H_img (nats) and H_joint (nats). ``statistics`` are views of it.

    Examples
    --------
    >>> flags = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    >>> row_statistics(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2), flags).image_attention
    tensor([[[0.0000, 0.2500, 0.2500]]])
    """

    image_attention: Tensor
    per_head: Tensor

    @property
    def statistics(self) -> HeadStatistics:
        """Views of ``per_head``, each [B, Hq]."""
        return HeadStatistics(*self.per_head.unbind(-1))


class SoftmaxResult(NamedTuple):
    """Result of :func:`reweighted_softmax`.

    Attributes
    ----------
    probabilities : [B, Hq, Sq, Skv]
        Attention on each key, in the dtype of the scores.
    per_head : float32 [B, Hq, Sq, 4], float64 of float64 input
        R_img, H_img (nats), H_joint (nats), and 1 where the head was reweighted, else 0.
        ``statistics`` and ``gate`` are views of it.

    Examples
    --------
    >>> flags = torch.tensor([[3, 0, 0]], dtype=torch.uint8)
    >>> reweighted_softmax(torch.zeros(1, 1, 1, 3), flags, focus_weight=2.0, min_ratio=0.5).gate
    tensor([[[True]]])
    """

    probabilities: Tensor
    per_head: Tensor

    @property
    def statistics(self) -> HeadStatistics:
        """Views of ``per_head``."""
        return HeadStatistics(*self.per_head[..., :3].unbind(-1))

    @property
    def gate(self) -> Tensor:
        """Whether the head was reweighted, bool [B, Hq, Sq]."""
        return self.per_head[..., 3] != 0


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_flags: Tensor,
    *,
    attn_mask: Tensor | None = None,
    heads: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    gate: GateKind = "dynamic",
    focus_weight: float = 1.5,
    image_weight: float = 1.0,
    min_ratio: float = 0.6,
    entropy_factor: float = 0.2,
) -> DecodeResult:
    """Attention in which gated heads see the question-relevant image keys reweighted.

    Parameters
    ----------
    query : floating [B, Hq, Sq, D]
        Sq queries of each sample.
    key : floating [B, Hkv, Skv, D]
        In the dtype of ``query``. Hq is a multiple of Hkv; query head h reads KV head
        ``h // (Hq // Hkv)``.
    value : floating [B, Hkv, Skv, Dv]
        In the dtype of ``query``.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    attn_mask : bool or floating, broadcastable to [B, Hq, Sq, Skv], optional
        ``True`` attends. A floating mask is added to the scores, and masks the key at or below the
        lowest finite value of its dtype. Without a mask every query attends to every key; no
        causality is implied.
    heads : bool [B, Hq], optional
        Heads that may be reweighted; all of them without it.
    scale : float, optional
        Factor of the scores; ``D ** -0.5`` without it.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)`` before the mask is added; 0 is off.
    gate : {"static", "dynamic"}
        ``"static"``: all of ``heads`` are gated. ``"dynamic"``: those of them with
        ``R_img > min_ratio`` and ``R_img > entropy_factor * H_joint`` at the query.
    focus_weight : float
        Weight of question-relevant keys in a gated head; no unit, at least 0, finite in float32.
    image_weight : float
        Weight of the other image keys in a gated head; no unit, as ``focus_weight``. A head that
        would keep less than 2^-100 of its attention is not reweighted.
    min_ratio : float
        Threshold of ``"dynamic"`` on R_img (no unit).
    entropy_factor : float
        Threshold of ``"dynamic"`` on R_img per nat of H_joint (1 / nat).

    Returns
    -------
    DecodeResult
        Output in the query's dtype, statistics, and the gate. The statistics are 0 without an
        attended image key, or with a share below 2^-100 on them; the output is 0 as well where a
        query attends to no key. A key to which no query of its sample and KV head attends
        contributes nothing, whatever ``key`` and ``value`` hold there.

    Examples
    --------
    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2), torch.eye(4)[None, None]
    >>> flags = torch.tensor([[1, 3, 0, 0]], dtype=torch.uint8)
    >>> result = decode_attention(q, k, v, flags, gate="static", focus_weight=2.0)
    >>> result.output[0, 0, 0]
    tensor([0.2000, 0.4000, 0.2000, 0.2000])
    """
    batch, heads_q, queries, _ = query.shape
    heads_kv, keys = key.shape[1], key.shape[2]
    group = heads_q // heads_kv
    dtype = _compute_dtype(query)

    scores, attended = _scores(query, key, attn_mask, scale, softcap)
    probabilities, per_head = _reweight(
        scores,
        attended,
        key_flags,
        heads,
        Gate(gate, focus_weight, image_weight, min_ratio, entropy_factor),
    )

    used = attended.reshape(batch, heads_kv, group * queries, keys).any(2)  # [B, Hkv, Skv]
    value = value.to(dtype).masked_fill(~used[..., None], 0.0)
    packed = probabilities.reshape(batch, heads_kv, group * queries, keys)
    output = (packed @ value).reshape(batch, heads_q, queries, value.shape[-1])
    return DecodeResult(output.to(query.dtype), per_head)


def row_statistics(
    query: Tensor,
    key: Tensor,
    key_flags: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> RowResult:
    """Statistics and image attention of one query per sample, for every head.

    Parameters
    ----------
    query : floating [B, Hq, D]
        One query of each sample.
    key : floating [B, Hkv, Skv, D]
        In the dtype of ``query``. Hq is a multiple of Hkv; query head h reads KV head
        ``h // (Hq // Hkv)``.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    attn_mask : bool or floating, broadcastable to [B, Hq, 1, Skv], optional
        ``True`` attends. A floating mask is added to the scores, and masks the key at or below the
        lowest finite value of its dtype. Without a mask every query attends to every key; no
        causality is implied.
    scale : float, optional
        Factor of the scores; ``D ** -0.5`` without it.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)`` before the mask is added; 0 is off.

    Returns
    -------
    RowResult
        Attention on each image key [B, Hq, N], and the statistics [B, Hq], which are 0 as in
        :func:`decode_attention`.

    Examples
    --------
    >>> flags = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    >>> result = row_statistics(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2), flags)
    >>> result.image_attention, result.statistics.image_ratio
    (tensor([[[0.0000, 0.2500, 0.2500]]]), tensor([[1.]]))
    """
    scores, attended = _scores(query[:, :, None], key, attn_mask, scale, softcap)
    probabilities = _softmax(scores, attended)
    statistics, image = _statistics(probabilities, attended, key_flags)
    # NaN attention stays NaN on image keys; other keys are 0 in any case.
    image_attention = torch.where(image, probabilities, 0.0)[:, :, 0, : key_flags.shape[1]]
    return RowResult(image_attention.contiguous(), torch.stack(statistics, -1)[:, :, 0])


def reweighted_softmax(
    scores: Tensor,
    key_flags: Tensor,
    *,
    heads: Tensor | None = None,
    gate: GateKind = "dynamic",
    focus_weight: float = 1.5,
    image_weight: float = 1.0,
    min_ratio: float = 0.6,
    entropy_factor: float = 0.2,
) -> SoftmaxResult:
    """Softmax over scores, reweighted in gated heads, for code that needs the weights themselves.

    Parameters
    ----------
    scores : floating [B, Hq, Sq, Skv]
        Scaled scores; a key is masked at or below the lowest finite value of the dtype.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    heads : bool [B, Hq], optional
        Heads that may be reweighted; all of them without it.
    gate : {"static", "dynamic"}
        ``"static"``: all of ``heads`` are gated. ``"dynamic"``: those of them with
        ``R_img > min_ratio`` and ``R_img > entropy_factor * H_joint`` at the query.
    focus_weight : float
        Weight of question-relevant keys in a gated head; no unit, at least 0, finite in float32.
    image_weight : float
        Weight of the other image keys in a gated head; no unit, as ``focus_weight``. A head that
        would keep less than 2^-100 of its attention is not reweighted.
    min_ratio : float
        Threshold of ``"dynamic"`` on R_img (no unit).
    entropy_factor : float
        Threshold of ``"dynamic"`` on R_img per nat of H_joint (1 / nat).

    Returns
    -------
    SoftmaxResult
        Probabilities in the dtype of ``scores``, statistics, and the gate; the statistics are 0 as
        in :func:`decode_attention`.

    Examples
    --------
    >>> flags = torch.tensor([[3, 0, 0]], dtype=torch.uint8)
    >>> result = reweighted_softmax(torch.zeros(1, 1, 1, 3), flags, gate="static", focus_weight=2.0)
    >>> result.probabilities
    tensor([[[[0.5000, 0.2500, 0.2500]]]])
    """
    attended = ~(scores <= torch.finfo(scores.dtype).min)  # a NaN score is attended, and shows
    widened = scores.to(_compute_dtype(scores))
    probabilities, per_head = _reweight(
        widened,
        attended,
        key_flags,
        heads,
        Gate(gate, focus_weight, image_weight, min_ratio, entropy_factor),
    )
    return SoftmaxResult(probabilities.to(scores.dtype), per_head)


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scores(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Scores, and which keys each query attends to, both [B, Hq, Sq, Skv]."""
    batch, heads_q, queries, dim = query.shape
    heads_kv, keys = key.shape[1], key.shape[2]
    dtype = _compute_dtype(query)
    packed = query.to(dtype).reshape(batch, heads_kv, (heads_q // heads_kv) * queries, dim)
    scores = (packed @ key.to(dtype).mT).reshape(batch, heads_q, queries, keys)
    scores = scores * (max(dim, 1) ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if attn_mask is None:
        return scores, torch.ones_like(scores, dtype=torch.bool)
    if attn_mask.dtype == torch.bool:
        return scores, attn_mask.expand_as(scores)
    attended = ~(attn_mask <= torch.finfo(attn_mask.dtype).min)
    return scores + torch.where(attended, attn_mask, 0.0).to(dtype), attended.expand_as(scores)


def _softmax(scores: Tensor, attended: Tensor) -> Tensor:
    """a_j over the attended keys, 0 elsewhere and for a query without keys [B, Hq, Sq, Skv]."""
    if scores.shape[-1] == 0:
        return scores
    masked = scores.masked_fill(~attended, -torch.inf)
    highest = masked.amax(-1, keepdim=True)
    p = torch.exp(masked - torch.where(attended.any(-1, keepdim=True), highest, 0.0))
    total = p.sum(-1, keepdim=True)
    return torch.where(attended, p / torch.where(total == 0, 1.0, total), 0.0)


def _flags(key_flags: Tensor, keys: int, bit: int) -> Tensor:
    """One bit of the flags as bool [B, 1, 1, Skv]."""
    padded = torch.nn.functional.pad(key_flags, (0, keys - key_flags.shape[1]))
    return ((padded & bit) != 0)[:, None, None, :]


def _statistics(a: Tensor, attended: Tensor, key_flags: Tensor) -> tuple[HeadStatistics, Tensor]:
    """Statistics [B, Hq, Sq] of probabilities, and the attended image keys [B, Hq, Sq, Skv]."""
    image = attended & _flags(key_flags, a.shape[-1], IMAGE_FLAG)
    n, m = image.sum(-1), attended.sum(-1)

    a_image = torch.where(image, a, 0.0)
    share = a_image.sum(-1)  # Z_V / Z; NaN if a weight of the query is NaN
    share = torch.where(torch.isnan(a.sum(-1)) & (n > 0), torch.nan, share)
    none = share < LEAST_SHARE
    share = torch.where(none, 0.0, share)
    ratio = share * m / n.clamp(min=1)

    a_image = torch.where(none[..., None], 0.0, a_image)
    inside = a_image / torch.where(none, 1.0, share)[..., None]
    image_entropy = -torch.where(inside == 0, 0.0, inside * torch.log(inside)).sum(-1)
    joint_entropy = -torch.where(a_image == 0, 0.0, a_image * torch.log(a_image)).sum(-1)
    dead = torch.isnan(ratio)
    statistics = HeadStatistics(
        ratio,
        torch.where(dead, torch.nan, image_entropy.clamp(min=0)),
        torch.where(dead, torch.nan, joint_entropy.clamp(min=0)),
    )
    return statistics, image


def _reweight(
    scores: Tensor,
    attended: Tensor,
    key_flags: Tensor,
    heads: Tensor | None,
    gate: Gate,
) -> tuple[Tensor, Tensor]:
    """Reweighted probabilities; statistics and gate [B, Hq, Sq, 4]; both in the compute dtype."""
    a = _softmax(scores, attended)
    statistics, _ = _statistics(a, attended, key_flags)

    gated = attended.any(-1)
    if heads is not None:
        gated = gated & heads[:, :, None]
    if gate.gate == "dynamic":
        ratio, joint = statistics.image_ratio, statistics.joint_entropy
        gated = gated & (ratio > gate.min_ratio) & (ratio > gate.entropy_factor * joint)
    elif gate.gate != "static":
        raise ValueError(f"gate: wanted 'static' or 'dynamic', got {gate.gate!r}")

    keys = scores.shape[-1]
    w = torch.where(_flags(key_flags, keys, IMAGE_FLAG), gate.image_weight, 1.0)
    w = torch.where(_flags(key_flags, keys, FOCUS_FLAG), gate.focus_weight, w)
    weighted = a * w.to(a.dtype)
    total = weighted.sum(-1)
    gated = gated & ~(total < LEAST_SHARE)  # nothing is left: the head keeps its attention
    reweighted = weighted / torch.where(total == 0, 1.0, total)[..., None]
    per_head = torch.stack([*statistics, gated.to(a.dtype)], -1)
    return torch.where(gated[..., None], reweighted, a), per_head
