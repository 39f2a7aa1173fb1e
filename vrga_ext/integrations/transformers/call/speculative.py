"""Drafted tokens in the forward call that reads a prompt: cut the call in two, join the outputs.

Prompt lookup and assisted decoding verify drafts together with the prompt's end. Where the region
is not known before the prompt has been read, the drafts have to be a forward call of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vrga_ext.integrations.transformers.call.context import LayerContext, LayerObserver
from vrga_ext.plan import LayerPlan

# Axis of the tokens in each tensor that decoders take.
_TOKEN_AXIS = {
    "input_ids": 1,
    "inputs_embeds": 1,
    "position_ids": -1,
    "cache_position": -1,
    "token_type_ids": 1,
    "mm_token_type_ids": 1,
    "moe_mm_token_type_ids": 1,
    "block_sequence_ids": 1,
    "per_layer_inputs": 1,
    "visual_pos_masks": 1,
}


class CannotCutError(Exception):
    """An argument of the forward call that cannot be cut along its tokens."""


class Drafts:
    """The context of drafts that were given to the decoder together with a prompt's end.

    Parameters
    ----------
    first
        Output of the decoder on the prompt.
    inner
        What the layers are told of the drafts, if anything.
    """

    def __init__(self, first: Any, inner: LayerContext | None) -> None:
        self.first, self.inner = first, inner

    @property
    def observer(self) -> LayerObserver | None:
        """Takes what the layers compute of the drafts."""
        return None if self.inner is None else self.inner.observer

    def plan_of(self, layer: int) -> LayerPlan | None:
        """What a layer reweights."""
        return None if self.inner is None else self.inner.plan_of(layer)


def check_can_cut(decoder: nn.Module, args: tuple[Any, ...], cache: Any) -> None:
    """Refuse a call of a decoder that cannot be cut, whatever its keyword arguments are.

    Raises
    ------
    CannotCutError
        With what cannot be cut.
    """
    if args:
        raise CannotCutError("a positional argument")
    if getattr(decoder, "lm_head", None) is not None:
        raise CannotCutError("an output of logits")
    if cache is None:
        raise CannotCutError("a call without a KV cache")


def cut(
    kwargs: dict[str, Any],
    tokens: int,
    count: int,
    cache: Any = None,
    layer_types: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a decoder's forward call, cut after the first ``count`` of ``tokens``.

    ``cache`` is the KV cache before the call, if there is one, ``layer_types`` the kinds of its
    layers.

    Raises
    ------
    CannotCutError
        With the name of the argument.
    """
    first, rest = dict(kwargs), dict(kwargs)
    for name, value in kwargs.items():
        if name == "attention_mask":
            first[name], rest[name] = _cut_mask(value, tokens, count, cache, layer_types)
        elif name == "logits_to_keep":  # of the whole call; some decoders crop rows by it
            first[name] = rest[name] = 0
        elif name == "deepstack_visual_embeds":
            first[name], rest[name] = _cut_visual(value, kwargs.get("visual_pos_masks"), count)
        elif isinstance(value, Tensor) and name in _TOKEN_AXIS:
            axis = _TOKEN_AXIS[name]
            if value.shape[axis] != tokens:
                raise CannotCutError(name)
            first[name] = value.narrow(axis, 0, count)
            rest[name] = value.narrow(axis, count, tokens - count)
        elif isinstance(value, (Tensor, list, tuple, dict)):
            raise CannotCutError(name)
    return first, rest


def _cut_mask(
    mask: Any, tokens: int, count: int, cache: Any, layer_types: Sequence[str], layer: int = 0
) -> tuple[Any, Any]:
    """A padding mask [B, K], a mask [B, H, S, K], or a dictionary of these and of None."""
    if isinstance(mask, dict):
        first, rest = {}, {}
        for name, one in mask.items():
            layer = layer_types.index(name) if name in layer_types else 0
            first[name], rest[name] = _cut_mask(one, tokens, count, cache, layer_types, layer)
        return first, rest
    if mask is None:
        return None, None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise CannotCutError("attention_mask")
    unseen = tokens - count
    if mask.dim() == 2:
        return mask[:, : mask.shape[1] - unseen], mask
    if mask.shape[2] != tokens:
        raise CannotCutError("attention_mask")
    if cache is not None:  # a static one has room for what has not been seen
        unseen = cache.get_mask_sizes(tokens, layer)[0] - cache.get_mask_sizes(count, layer)[0]
    return mask[:, :, :count, : mask.shape[3] - unseen], mask[:, :, count:]


def fit_masks(
    rest: dict[str, Any], cache: Any, tokens: int, layer_types: Sequence[str], device: Any
) -> None:
    """Make the cache's windows and the masks that are made for kinds of layers fit each other.

    ``tokens`` is the number of drafts. A sliding window has lost keys meanwhile. None in such a
    dictionary says "causal" to a call without a past; the drafts have one.
    """
    for layer in getattr(cache, "layers", ()):
        # Older releases keep what left a window, for a rollback, and count it as gone. Convolutions
        # keep something for it as well, but no keys.
        recorded = getattr(layer, "record_past", False) and hasattr(layer, "keys")
        if recorded and layer.keys.shape[-2] + tokens > layer.get_mask_sizes(tokens)[0]:
            layer.crop(0)
    masks = rest.get("attention_mask")
    if not isinstance(masks, dict):
        return
    past, fitted = int(cache.get_seq_length()), {}
    for name, mask in masks.items():
        if name not in layer_types:
            continue
        keys, first = cache.get_mask_sizes(tokens, layer_types.index(name))
        if mask is None:
            queries = torch.arange(past, past + tokens, device=device)
            keys_at = torch.arange(first, first + keys, device=device)
            mask = (keys_at <= queries[:, None])[None, None]
        fitted[name] = mask[:, :, -tokens:, -keys:]
    rest["attention_mask"] = masks | fitted


def _cut_visual(embeds: Any, positions: Any, count: int) -> tuple[Any, Any]:
    """Features [N, D] of each layer, one per True of ``positions`` [B, S], sample by sample."""
    if embeds is None:
        return None, None
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        raise CannotCutError("deepstack_visual_embeds")
    early = (positions.nonzero()[:, 1] < count).to(embeds[0].device)
    rest = None if bool(early.all()) else [features[~early] for features in embeds]
    return [features[early] for features in embeds], rest


def cut_ids(ids: Tensor | None, part: slice, tokens: int) -> Tensor | None:
    """Token ids [B, S] of one part of a call on S = ``tokens`` tokens, where they are known."""
    return ids[:, part] if ids is not None and ids.shape[1] == tokens else ids


def join(first: Any, rest: Any) -> Any:
    """The output of one call, from the outputs of its two parts."""
    rest["last_hidden_state"] = torch.cat([first.last_hidden_state, rest.last_hidden_state], 1)
    for name, along in (("hidden_states", 1), ("router_logits", 0)):
        if rest.get(name) is not None:
            rest[name] = tuple(
                torch.cat(pair, along) for pair in zip(first[name], rest[name], strict=True)
            )
    if rest.get("attentions") is not None:
        pairs = zip(first.attentions, rest.attentions, strict=True)
        rest["attentions"] = tuple(None if b is None else _stack(a, b) for a, b in pairs)
    return rest


def _stack(first: Tensor, rest: Tensor) -> Tensor:
    """Weights [B, H, S, K]; the first part has not seen the last keys."""
    unseen = rest.shape[3] - first.shape[3]
    return torch.cat([torch.nn.functional.pad(first, (0, unseen)), rest], 2)
