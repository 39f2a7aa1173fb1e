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
from vrga_ext.adapter.prefill import PrefillPass
from vrga_ext.adapter.state import SequenceState

# The model's implementation -> the name it is replaced by while enabled. Names with "sdpa" or
# "flash" in them are treated specially by transformers.
IMPLEMENTATIONS = {"sdpa": "vrga", "eager": "vrga_eager"}

# Arguments that change the scores in a way the operations do not know.
_UNKNOWN_TO_OPS = ("position_bias", "s_aux")

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def register() -> None:
    """Make the attention functions known to transformers, each with the masks of its base."""
    functions = {"sdpa": vrga_attention, "eager": vrga_eager_attention}
    for base, name in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, functions[base])
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])


def vrga_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``sdpa``; query [B, H, q, D], key and value [B, Hkv, K, D]."""
    layer = _gated_layer(module, query, key, attention_mask, vrga, kwargs)
    if layer is None:
        base: Attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return base(module, query, key, value, attention_mask, **kwargs)
    assert isinstance(vrga, SequenceState)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    output = decode_attention(query, key, value, attention_mask, scale, layer, vrga)
    return output.transpose(1, 2).contiguous(), None


def vrga_eager_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``eager``, which computes a soft-cap and returns the weights.

    Every modelling file has its own eager attention; the decode step here returns weights as well.
    """
    layer = _gated_layer(module, query, key, attention_mask, vrga, kwargs)
    if layer is None:
        base: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return base(module, query, key, value, attention_mask, **kwargs)
    assert isinstance(vrga, SequenceState)
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).mT
    scores = scores * (kwargs.get("scaling") or query.shape[-1] ** -0.5)
    if softcap := kwargs.get("softcap"):
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = _operations(scores).reweighted_softmax(
        scores,
        vrga.flags_on(key.device),
        heads=vrga.heads_on(layer, key.device),
        **vrga.gate_keywords,
    )
    output = weights.probabilities @ value.repeat_interleave(group, 1)
    return output.transpose(1, 2).contiguous(), weights.probabilities


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    layer: int,
    state: SequenceState,
) -> Tensor:
    """Output [B, H, q, D] of a layer with gated heads.

    The native operation is called as it is: it checks its arguments itself, and a decode step has
    no use for the typed results of :func:`vrga_ext.ops.decode_attention`.
    """
    flags, heads = state.flags_on(key.device), state.heads_on(layer, key.device)
    if _operations(query) is ops and ops.has_kernel(query, (query, value)):
        output: Tensor = torch.ops.vrga_ext.decode_attention.default(
            query, key, value, flags, mask, heads, scale, 0.0, *state.gate_arguments
        )[0]
        return output
    return reference.decode_attention(
        query, key, value, flags, attn_mask=mask, heads=heads, scale=scale, **state.gate_keywords
    ).output


def _operations(tensor: Tensor) -> Any:
    """The native operations, which have no gradient, or the reference, which does."""
    return reference if torch.is_grad_enabled() and tensor.requires_grad else ops


def _gated_layer(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    vrga: PrefillPass | SequenceState | None,
    kwargs: dict[str, Any],
) -> int | None:
    """The layer's index if heads are gated in it; on the way, records what a prompt shows."""
    if vrga is None or not _is_full_attention(kwargs):
        return None
    layer: int = module.layer_idx  # type: ignore[assignment]
    if isinstance(vrga, PrefillPass):
        softcap = kwargs.get("softcap") or 0.0
        vrga.record(layer, query, key, mask, kwargs.get("scaling"), softcap)
        return None
    return layer if layer in vrga.layer_heads else None


def _is_full_attention(kwargs: dict[str, Any]) -> bool:
    """Whether the keys are the prompt's columns and the scores are the plain ones."""
    if kwargs.get("sliding_window") is not None:
        return False
    return all(kwargs.get(name) is None for name in _UNKNOWN_TO_OPS)
