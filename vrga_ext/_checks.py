"""Argument checks of :mod:`vrga_ext.ops`: each message names the argument, what was wanted and got.

The compiled operations check the same, with the same messages. These checks run where no kernel
does: before the reference, and in the fakes while a model is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vrga_ext.gate import Gate, GateKind

MASK_DTYPES = (torch.bool, torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_flags: Tensor,
    attn_mask: Tensor | None,
    heads: Tensor | None,
    softcap: float,
    gate: Gate,
) -> None:
    """Arguments of ``decode_attention``."""
    _check_attention(query, key, 4, "[B, Hq, Sq, D]")
    _check_value(value, query, key)
    keys = key.shape[2]
    _check_flags(key_flags, query, keys)
    _check_mask(attn_mask, query, (*query.shape[:3], keys))
    _check_heads(heads, query)
    _check_gate(gate)
    _check_softcap(softcap)


def check_rows(
    query: Tensor, key: Tensor, key_flags: Tensor, attn_mask: Tensor | None, softcap: float
) -> None:
    """Arguments of ``row_statistics``."""
    _check_attention(query, key, 3, "[B, Hq, D]")
    _check_flags(key_flags, query, key.shape[2])
    _check_mask(attn_mask, query, (*query.shape[:2], 1, key.shape[2]))
    _check_softcap(softcap)


def check_softmax(
    scores: Tensor,
    key_flags: Tensor,
    heads: Tensor | None,
    gate: Gate,
) -> None:
    """Arguments of ``reweighted_softmax``."""
    if scores.dim() != 4:
        raise ValueError(f"scores: wanted [B, Hq, Sq, Skv], got {[*scores.shape]}")
    _check_floating("scores", scores)
    _check_flags(key_flags, scores, scores.shape[3])
    _check_heads(heads, scores)
    _check_gate(gate)


def check_no_grad(**tensors: Tensor | None) -> None:
    """No tensor requires grad or carries a tangent: without an error, the graph would be cut."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.requires_grad:
            raise ValueError(
                f"{name}: wanted a tensor that does not require grad (there is no backward), "
                "got one that does; use torch.no_grad()"
            )
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise ValueError(
                f"{name}: wanted a tensor without a tangent (there is no forward-mode "
                "derivative), got a dual tensor"
            )


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: wanted a floating dtype, got {tensor.dtype}")


def _check_attention(query: Tensor, key: Tensor, dims: int, layout: str) -> None:
    """The query has the given layout and the key fits it."""
    if query.dim() != dims:
        raise ValueError(f"query: wanted {layout}, got {[*query.shape]}")
    _check_floating("query", query)
    batch, heads_q, dim = query.shape[0], query.shape[1], query.shape[-1]
    if key.dim() != 4 or key.shape[0] != batch or key.shape[3] != dim:
        raise ValueError(f"key: wanted {[batch, 'Hkv', 'Skv', dim]}, got {[*key.shape]}")
    heads_kv = key.shape[1]
    if heads_kv == 0 or heads_q % heads_kv != 0:
        raise ValueError(f"key: wanted a number of heads that divides {heads_q}, got {heads_kv}")
    _check_like("key", key, query)


def _check_value(value: Tensor, query: Tensor, key: Tensor) -> None:
    if value.dim() != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value: wanted {[*key.shape[:3], 'Dv']}, got {[*value.shape]}")
    _check_like("value", value, query)


def _check_flags(key_flags: Tensor, first: Tensor, keys: int) -> None:
    """uint8 [B, N] with N at most ``keys``."""
    if key_flags.dtype != torch.uint8:
        raise ValueError(f"key_flags: wanted torch.uint8, got {key_flags.dtype}")
    shape = key_flags.shape
    if len(shape) != 2 or shape[0] != first.shape[0] or shape[1] > keys:
        raise ValueError(f"key_flags: wanted [{first.shape[0]}, at most {keys}], got {[*shape]}")
    _check_device("key_flags", key_flags, first)


def _check_mask(mask: Tensor | None, first: Tensor, shape: Sequence[int]) -> None:
    """Boolean or additive, broadcasts to ``shape``; the last dimension is full."""
    if mask is None:
        return
    if mask.dtype not in MASK_DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in MASK_DTYPES)
        raise ValueError(f"attn_mask: wanted one of {wanted}, got {mask.dtype}")
    fits = 1 <= mask.dim() <= 4 and mask.shape[-1] == shape[-1]
    for size, full in zip(mask.shape[:-1], shape[4 - mask.dim() :], strict=False):
        fits = fits and size in (1, full)
    if not fits:
        raise ValueError(
            f"attn_mask: wanted a shape that broadcasts to {[*shape]} with a full last "
            f"dimension, got {[*mask.shape]}"
        )
    _check_device("attn_mask", mask, first)


def _check_heads(heads: Tensor | None, first: Tensor) -> None:
    """Boolean [B, Hq]."""
    if heads is None:
        return
    if heads.dtype != torch.bool:
        raise ValueError(f"heads: wanted torch.bool, got {heads.dtype}")
    if heads.shape != first.shape[:2]:
        raise ValueError(f"heads: wanted {[*first.shape[:2]]}, got {[*heads.shape]}")
    _check_device("heads", heads, first)


def _check_gate(gate: Gate) -> None:
    if gate.gate not in get_args(GateKind):
        raise ValueError(f"gate: wanted 'static' or 'dynamic', got {gate.gate!r}")
    for name in ("focus_weight", "image_weight"):
        weight = getattr(gate, name)
        if not 0 <= weight <= torch.finfo(torch.float32).max:
            raise ValueError(f"{name}: wanted >= 0 and finite as float32, got {weight}")


def _check_softcap(softcap: float) -> None:
    if not softcap >= 0:
        raise ValueError(f"softcap: wanted >= 0, got {softcap}")


def _check_like(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.dtype != query.dtype:
        raise ValueError(f"{name}: wanted {query.dtype}, got {tensor.dtype}")
    _check_device(name, tensor, query)


def _check_device(name: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(f"{name}: wanted on {first.device}, got {tensor.device}")
