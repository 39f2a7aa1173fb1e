"""The attention function that transformers calls in every layer of an enabled language model.

``vrga``, a :class:`LayerContext`, travels as a keyword argument from a pre-hook on the decoder to
this function. Wherever nothing is reweighted, the model's own attention runs, bit for bit, and what
observes computes beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrga_ext import ops, reference
from vrga_ext.integrations.transformers.call.context import LayerContext
from vrga_ext.integrations.transformers.model.layers import SLIDING_WINDOW, UnservedAttentionError
from vrga_ext.plan import LayerPlan, join_parts, parts_of

# The model's implementation -> the name it is replaced by while enabled. Names with "sdpa" or
# "flash" in them are treated specially by transformers.
IMPLEMENTATIONS = {"sdpa": "vrga", "eager": "vrga_eager"}

# Arguments with which the keys are not the prompt's positions, or the scores not the plain ones.
_UNSUPPORTED = {
    "sliding_window": SLIDING_WINDOW,
    "position_bias": "a position bias",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "cache": "a paged KV cache",  # since transformers 5.24 the decoder's, which is refused
}
# The same as a layer type, where only the mask shows the window.
_WINDOWED_LAYERS = frozenset({"sliding_attention", "chunked_attention", "hybrid_sliding"})
# Keys that an indexer picked, which sdpa and eager, by their names, are given as a mask instead.
_PICKED_KEYS = ("indices", "block_indices")

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def as_under_sdpa(kwargs: dict[str, Any], cache: Any) -> dict[str, Any]:
    """The decoder's arguments with which it does what it would do under the name ``sdpa``.

    Some decoders compute the last ``logits_to_keep`` queries only in layers that add nothing to the
    cache, unless a mask is left to sdpa's causality, which cropped queries have lost. They know
    sdpa by its name.
    """
    keep, masks = kwargs.get("logits_to_keep"), kwargs.get("attention_mask")
    if not isinstance(keep, int) or keep == 0:
        return kwargs
    given = masks.values() if isinstance(masks, dict) else [masks]
    causal = any(mask is None or mask.dim() == 2 for mask in given)
    static = getattr(cache, "is_compileable", False)
    return kwargs | {"logits_to_keep": 0} if causal and (keep > 1 or static) else kwargs


def vrga_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: LayerContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``sdpa``, which has no soft-cap.

    ``query`` [B, H, q, D], ``key`` [B, Hkv, K, D], ``value`` [B, Hkv, K, Dv].
    """
    plan = _layer_plan(module, query, key, attention_mask, vrga, kwargs, softcap=0.0)
    if plan is None:
        base: Attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return base(module, query, key, value, attention_mask, **kwargs)
    if torch.is_autocast_enabled(query.device.type):
        # As in sdpa: tensors may differ, rotated queries and keys being float32, and the
        # operations, which autocast does not know, want one dtype.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = kwargs.get("scaling")
    implementation = _differentiable(query, key, value) if torch.is_grad_enabled() else ops
    if plan.is_uniform:
        gate, focus_weight, image_weight, min_ratio, entropy_factor = plan.gates[0].gate
        output, per_head = implementation.decode_attention(
            query,
            key,
            value,
            plan.flags,
            attn_mask=attention_mask,
            heads=plan.heads,
            scale=scale,
            gate=gate,
            focus_weight=focus_weight,
            image_weight=image_weight,
            min_ratio=min_ratio,
            entropy_factor=entropy_factor,
        )
    else:
        parts = [
            implementation.decode_attention(
                query[part.at],
                key[part.sequences],
                value[part.sequences],
                part.flags,
                attn_mask=None if attention_mask is None else part.of_mask(attention_mask),
                heads=part.heads,
                scale=scale,
                **part.gate._asdict(),
            )
            for part in parts_of(plan, query.shape[2])
        ]
        output, per_head = (
            join_parts(pieces, query.shape[2]) for pieces in zip(*parts, strict=True)
        )
    if vrga is not None and vrga.observer is not None:
        layer: Any = module.layer_idx
        vrga.observer.record(layer, query, key, attention_mask, scale, 0.0, per_head)
    return output.transpose(1, 2).contiguous(), None


def vrga_eager_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    vrga: LayerContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over ``eager``, which computes a soft-cap and returns the weights.

    Every modelling file has its own eager attention; the decode step here returns weights as well.
    """
    softcap = kwargs.get("softcap") or 0.0
    plan = _layer_plan(module, query, key, attention_mask, vrga, kwargs, softcap)
    if plan is None:
        base: Attention | None = getattr(
            sys.modules[type(module).__module__], "eager_attention_forward", None
        )
        if base is None:
            name = type(module).__name__
            raise UnservedAttentionError(f"{name} has no eager_attention_forward beside it")
        return base(module, query, key, value, attention_mask, **kwargs)
    group = query.shape[1] // key.shape[1]
    scale = kwargs.get("scaling")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = query @ key.repeat_interleave(group, 1).mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = _masked(scores, attention_mask)
    implementation = _differentiable(scores) if torch.is_grad_enabled() else ops
    parts = [
        implementation.reweighted_softmax(
            scores[part.at], part.flags, heads=part.heads, **part.gate._asdict()
        )
        for part in parts_of(plan, query.shape[2])
    ]
    probabilities, per_head = (
        join_parts(pieces, query.shape[2]) for pieces in zip(*parts, strict=True)
    )
    if vrga is not None and vrga.observer is not None:
        layer: Any = module.layer_idx
        vrga.observer.record(layer, query, key, attention_mask, scale, softcap, per_head)
    output = probabilities @ value.repeat_interleave(group, 1)
    return output.transpose(1, 2).contiguous(), probabilities


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores plus an additive mask; a masked score is the lowest number whatever it was before.

    In float16 a sum with the lowest number can exceed it, and the key would count as attended. A
    boolean mask is added as 0 and 1, which is what the models' own eager attention does.
    """
    masked = scores + mask
    if mask.dtype == torch.bool:
        return masked
    lowest = torch.finfo(masked.dtype).min
    return torch.where(mask > torch.finfo(mask.dtype).min, masked, lowest)


def _differentiable(*tensors: Tensor) -> Any:
    """The reference where a gradient is wanted, which the native operations do not have."""
    return reference if any(tensor.requires_grad for tensor in tensors) else ops


def _layer_plan(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    vrga: LayerContext | None,
    kwargs: dict[str, Any],
    softcap: float,
) -> LayerPlan | None:
    """What the layer reweights; where it does not, its observer is told what it computes."""
    for argument in _PICKED_KEYS:
        if kwargs.get(argument) is not None:
            name = type(module).__name__
            raise UnservedAttentionError(f"{name} attends to keys that an indexer picks (sparse)")
    if vrga is None:
        return None
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnservedAttentionError(f"{type(module).__name__} has no layer_idx")
    plan, observer = vrga.plan_of(layer), vrga.observer
    if plan is None and observer is None:
        return None
    why = _unsupported_reason(module, layer, kwargs)
    if why is not None:
        if observer is not None:
            observer.skip(layer, why)
        return None
    if plan is not None:  # what the operation returns is recorded
        return plan if plan.flags.device == key.device else plan.on(key.device)
    if mask is None and not _is_causal(module, kwargs):
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
    if observer is not None:
        observer.record(layer, query, key, mask, kwargs.get("scaling"), softcap)
    return None


def _unsupported_reason(module: torch.nn.Module, layer: int, kwargs: dict[str, Any]) -> str | None:
    """Why a layer is left alone, if it is."""
    for name, why in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            return why
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or ()
    windowed = layer < len(kinds) and kinds[layer] in _WINDOWED_LAYERS
    return SLIDING_WINDOW if windowed else None


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a call without a mask is causal, as sdpa decides it."""
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _allow_output_attentions(stock: Any) -> None:
    """Let ``config.output_attentions = True`` stand for our name of eager attention, too.

    The setter compares the implementation with ``"eager"`` by name.
    """

    def set_output_attentions(self: Any, value: bool) -> None:
        if self._attn_implementation == IMPLEMENTATIONS["eager"]:
            self._output_attentions = value
        else:
            stock.fset(self, value)

    set_output_attentions.knows_vrga = True  # type: ignore[attr-defined]
    type.__setattr__(PreTrainedConfig, "output_attentions", stock.setter(set_output_attentions))


_output_attentions: Any = PreTrainedConfig.__dict__["output_attentions"]
if not hasattr(_output_attentions.fset, "knows_vrga"):  # this module may be imported again
    _allow_output_attentions(_output_attentions)

# Each with the masks of its base. On import, so that a pickled model finds them.
for _base, _function in (("sdpa", vrga_attention), ("eager", vrga_eager_attention)):
    AttentionInterface.register(IMPLEMENTATIONS[_base], _function)
    AttentionMaskInterface.register(IMPLEMENTATIONS[_base], ALL_MASK_ATTENTION_FUNCTIONS[_base])
