"""The attention function that transformers calls in every layer of an enabled language model.

``vrga`` travels as a keyword argument from a pre-hook on the decoder to this function: a
:class:`PrefillPass` while a prompt is read, a :class:`SequenceState` while tokens are generated,
and nothing otherwise. Wherever nothing is reweighted, the model's own attention runs, bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrga_ext import ops, reference
from vrga_ext.adapter.state import PrefillPass, SequenceState

# The model's implementation -> the name it is replaced by while enabled. Names with "sdpa" or
# "flash" in them are treated specially by transformers.
IMPLEMENTATIONS = {"sdpa": "vrga", "eager": "vrga_eager"}

# Arguments that change the scores in a way the operations do not know.
_UNKNOWN_TO_OPS = ("position_bias", "s_aux")

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def register() -> None:
    """Make the attention functions known to transformers, each with the masks of its base."""
    for base, name in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, _FUNCTIONS[base])
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])


def _sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)


def _eager(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # Every modelling file has its own eager attention.
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def vrga_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the base ``sdpa``; query [B, H, q, D], key and value [B, Hkv, K, D]."""
    return _attend(_sdpa, module, query, key, value, attention_mask, vrga, kwargs)


def vrga_eager_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the base ``eager``, for models whose scores only it computes (soft-cap)."""
    return _attend(_eager, module, query, key, value, attention_mask, vrga, kwargs)


_FUNCTIONS: dict[str, Attention] = {"sdpa": vrga_attention, "eager": vrga_eager_attention}


def _attend(
    base: Attention,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    if vrga is None or not _is_full_attention(kwargs):
        return base(module, query, key, value, mask, **kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = kwargs.get("scaling")
    softcap = kwargs.get("softcap") or 0.0
    if isinstance(vrga, PrefillPass):
        vrga.record(layer, query, key, mask, scale, softcap)
        return base(module, query, key, value, mask, **kwargs)
    if layer not in vrga.layer_heads:
        return base(module, query, key, value, mask, **kwargs)

    config = vrga.config
    if mask is None and query.shape[2] > 1:  # drafted tokens under verification
        mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    # The operations have no gradient; the reference does.
    attention = reference if torch.is_grad_enabled() and query.requires_grad else ops
    result = attention.decode_attention(
        query,
        key,
        value,
        vrga.flags_on(key.device),
        attn_mask=mask,
        heads=vrga.heads_on(layer, key.device),
        scale=scale,
        softcap=softcap,
        gate=config.gate,
        focus_weight=config.focus_weight,
        image_weight=config.image_weight,
        min_ratio=config.min_ratio,
        entropy_factor=config.entropy_factor,
    )
    return result.output.transpose(1, 2).contiguous(), None


def _is_full_attention(kwargs: dict[str, Any]) -> bool:
    """Whether the keys are the prompt's columns and the scores are the plain ones."""
    if kwargs.get("sliding_window") is not None:
        return False
    return all(kwargs.get(name) is None for name in _UNKNOWN_TO_OPS)


def _causal_mask(rows: int, keys: int, device: torch.device) -> Tensor:
    """bool [1, 1, q, K]: the last row sees every key."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)[None, None]
