"""The attention function that transformers calls in every layer of an enabled language model.

``vrga`` travels as a keyword argument from a pre-hook on the decoder to this function: a
:class:`PrefillPass` while a prompt is read, a :class:`SequenceState` while tokens are generated, or
a :class:`WatchedCall` that holds it where recorders watch, and nothing otherwise. Wherever nothing
is reweighted, the model's own attention runs, bit for bit, and recorders compute beside it.
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
from vrga_ext.adapter.recorder import WatchedCall
from vrga_ext.adapter.state import SequenceState

# The model's implementation -> the name it is replaced by while enabled. Names with "sdpa" or
# "flash" in them are treated specially by transformers.
IMPLEMENTATIONS = {"sdpa": "vrga", "eager": "vrga_eager"}

# Arguments that change the scores in a way the operations do not know.
_UNKNOWN_TO_OPS = ("position_bias", "s_aux")

Attention = Callable[..., tuple[Tensor, Tensor | None]]
Travelling = PrefillPass | SequenceState | WatchedCall


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
    vrga: Travelling | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``sdpa``; query [B, H, q, D], key and value [B, Hkv, K, D]."""
    layer = _gated_layer(module, query, key, attention_mask, vrga, kwargs)
    if layer is None:
        base: Attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return base(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    state = vrga.state if isinstance(vrga, WatchedCall) else vrga
    assert isinstance(state, SequenceState)
    output, packed = decode_attention(query, key, value, attention_mask, scale, layer, state)
    if isinstance(vrga, WatchedCall):
        vrga.record(layer, query, key, attention_mask, scale, 0.0, packed)
    return output.transpose(1, 2).contiguous(), None


def vrga_eager_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: Travelling | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``eager``, which computes a soft-cap and returns the weights.

    Every modelling file has its own eager attention; the decode step here returns weights as well.
    """
    layer = _gated_layer(module, query, key, attention_mask, vrga, kwargs)
    if layer is None:
        base: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return base(module, query, key, value, attention_mask, **kwargs)
    state = vrga.state if isinstance(vrga, WatchedCall) else vrga
    assert isinstance(state, SequenceState)
    group = query.shape[1] // key.shape[1]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.repeat_interleave(group, 1).mT * scale
    if softcap := kwargs.get("softcap"):
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = _operations(scores).reweighted_softmax(
        scores,
        state.flags_on(key.device),
        heads=state.heads_on(layer, key.device),
        **state.gate_keywords,
    )
    if isinstance(vrga, WatchedCall):
        packed = _packed(weights.statistics, weights.gate)
        vrga.record(layer, query, key, attention_mask, scale, softcap or 0.0, packed)
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
) -> tuple[Tensor, Tensor]:
    """Output [B, H, q, D] of a layer with gated heads; R_img, H_img, H_joint, gate [B, H, q, 4].

    The native operation is called as it is: it checks its arguments itself, and a decode step has
    no use for the typed results of :func:`vrga_ext.ops.decode_attention`.
    """
    flags, heads = state.flags_on(key.device), state.heads_on(layer, key.device)
    if _operations(query) is ops and ops.has_kernel(query, (query, value)):
        native: tuple[Tensor, Tensor] = torch.ops.vrga_ext.decode_attention.default(
            query, key, value, flags, mask, heads, scale, 0.0, *state.gate_arguments
        )
        return native
    result = reference.decode_attention(
        query, key, value, flags, attn_mask=mask, heads=heads, scale=scale, **state.gate_keywords
    )
    return result.output, _packed(result.statistics, result.gate)


def _packed(statistics: reference.HeadStatistics, gate: Tensor) -> Tensor:
    """[B, H, q, 4] as the native operation returns it."""
    return torch.stack([*statistics, gate.to(statistics.image_ratio.dtype)], dim=-1)


def _operations(tensor: Tensor) -> Any:
    """The native operations, which have no gradient, or the reference, which does."""
    return reference if torch.is_grad_enabled() and tensor.requires_grad else ops


def _gated_layer(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    vrga: Travelling | None,
    kwargs: dict[str, Any],
) -> int | None:
    """The layer's index if heads are gated in it; where not, records what it shows."""
    if vrga is None or not _is_full_attention(kwargs):
        return None
    layer: int = module.layer_idx  # type: ignore[assignment]
    if isinstance(vrga, SequenceState):
        return layer if layer in vrga.layer_heads else None
    if isinstance(vrga, WatchedCall) and layer in vrga.state.layer_heads:
        return layer  # recorded with what the operation returns
    vrga.record(layer, query, key, mask, kwargs.get("scaling"), kwargs.get("softcap") or 0.0)
    return None


def _is_full_attention(kwargs: dict[str, Any]) -> bool:
    """Whether the keys are the prompt's columns and the scores are the plain ones."""
    if kwargs.get("sliding_window") is not None:
        return False
    return all(kwargs.get(name) is None for name in _UNKNOWN_TO_OPS)
