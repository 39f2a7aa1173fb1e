"""What a language model's attention layers are like, found by running its code without weights.

A copy of the decoder without storage (device ``meta``) reads two tokens, and a third one behind
them: its own code then says which layers call the attention function, with which arguments, and
what becomes of the KV cache. No weight is read, nothing is computed, and the model itself is not
touched.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.initialization import no_init_weights

from vrga_ext.integrations.transformers.sequence.kv_cache import (
    CacheArgument,
    layers_with_keys,
    returned_cache,
)

# Layers whose attention is computed on keys that an indexer picks; transformers gives the picked
# keys as a mask to its own implementations only.
_SPARSE_LAYERS = frozenset(
    {
        "indexed_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "minimax_m3_sparse",
    }
)
# Why a layer is left alone.
SLIDING_WINDOW = "a sliding window"
OTHER_HEADS = "another number of heads than in the layers before"
BYPASSED = "they attend past transformers' attention functions"


_CAUSAL = "model: wanted a language model that writes token by token behind its KV cache"


class UnservedAttentionError(ValueError):
    """A layer's attention is of a kind that cannot be served, not even as it is."""


class Survey:
    """Collects what the attention function is called with, in place of a ``PrefillPass``."""

    def __init__(self) -> None:
        self.heads: dict[int, int] = {}  # query heads of each layer with full attention
        self.keys: dict[int, int] = {}  # keys that each of them attends to
        self.skipped: dict[str, list[int]] = {}  # why -> layers that are left alone
        self.unfit: str | None = None  # why no answer can be written behind the prompt's KV cache

    @property
    def observer(self) -> Survey:
        """The survey itself."""
        return self

    def plan_of(self, layer: int) -> None:
        """Nothing is reweighted."""

    def record(self, layer: int, query: Tensor, key: Tensor, *arguments: Any) -> None:
        """Take the query [B, H, q, D] and key [B, Hkv, K, D] of a layer with full attention."""
        if layer in self.heads:
            raise UnservedAttentionError(f"layer {layer} computes attention more than once")
        if any(heads != query.shape[1] for heads in self.heads.values()):
            self.skip(layer, OTHER_HEADS)
        else:
            self.heads[layer] = query.shape[1]
            self.keys[layer] = key.shape[2]

    def skip(self, layer: int, why: str) -> None:
        """Take a layer that is left alone."""
        self.skipped.setdefault(why, []).append(layer)


_done: dict[tuple[type, str, str], Survey | UnservedAttentionError | None] = {}


def survey(decoder: nn.Module, config: Any, implementation: str) -> Survey | None:
    """The layers of a decoder under an attention implementation, or None if it cannot be told.

    Parameters
    ----------
    decoder
        The language model without its head; only its class is used.
    config
        Its configuration.
    implementation
        The name under which the attention function is registered.

    Raises
    ------
    UnservedAttentionError
        The decoder cannot run under the attention function.
    """
    key = (type(decoder), implementation, config.to_json_string(use_diff=False))
    if key not in _done:
        try:
            _done[key] = _run(type(decoder), config, implementation)
        except UnservedAttentionError as error:
            _done[key] = error
        except Exception:  # code that no stock decoder has; the first prompt will tell
            _done[key] = None
    found = _done[key]
    if isinstance(found, UnservedAttentionError):
        raise found
    return found


def _run(decoder_class: type, config: Any, implementation: str) -> Survey:
    config = copy.deepcopy(config)
    config._attn_implementation = implementation
    prompt, step = Survey(), Survey()
    with torch.device("meta"), no_init_weights(), torch.no_grad():
        # the one dtype that grouped matrix products have on every device
        decoder = decoder_class(config).eval().to(torch.bfloat16)
        # with a cache, else the positions are searched for several sequences in one row
        cache = _read(decoder, 2, _empty_cache(decoder, config), prompt)
        if not prompt.heads:
            return prompt
        prompt.unfit = _misfit(prompt, cache, 2)
        if prompt.unfit is None:
            seen = prompt.heads.keys() | set().union(*prompt.skipped.values())
            for layer in layers_with_keys(cache, 2, seen):
                prompt.skip(layer, BYPASSED)
            prompt.unfit = _misfit(step, _read(decoder, 1, cache, step), 3)
    return prompt


def _empty_cache(decoder: nn.Module, config: Any) -> DynamicCache | None:
    """What ``generate`` gives a decoder, if its ``forward`` takes it: some make no cache."""
    taken = inspect.signature(type(decoder).forward).parameters
    wraps = "input_ids" not in taken  # another forward, which names what it takes
    return DynamicCache(config=config) if wraps or CacheArgument(decoder).name in taken else None


def _read(decoder: nn.Module, tokens: int, cache: Any, found: Survey) -> Any:
    """Read tokens behind a cache, or without one; the cache afterwards, or None."""
    given = {"use_cache": True, "vrga": found}
    if cache is not None:
        given = CacheArgument(decoder).put(given, cache)
    output = decoder(input_ids=torch.zeros(1, tokens, dtype=torch.long), **given)
    returned = returned_cache(output)
    return cache if returned is None else returned


def _misfit(found: Survey, cache: Any, tokens: int) -> str | None:
    """Why the decoder cannot be one that writes behind its KV cache, if so.

    ``tokens`` is the number of those that were read so far, the last ones by the call that was
    ``found``.
    """
    if cache is None:
        return "returns no KV cache"
    length = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    if length != tokens:
        return f"keeps {length} entries in its KV cache after {tokens} tokens"
    other = sorted({keys for keys in found.keys.values() if keys != tokens})
    if other:
        return f"attends to {other[0]} keys after {tokens} tokens"
    return None


def full_layers(decoder: nn.Module, config: Any, implementation: str) -> frozenset[int]:
    """Layers that attend through the attention function, without a window; none if unknown."""
    found = survey(getattr(decoder, "_orig_mod", decoder), config, implementation)
    return frozenset() if found is None else frozenset(found.heads)


def check_decoder(decoder: nn.Module, config: Any, implementation: str) -> list[str]:
    """What there is to say about a decoder's layers before the first prompt.

    Raises
    ------
    ValueError
        No layer of the decoder can be served; the message says why.
    """
    decoder = getattr(decoder, "_orig_mod", decoder)  # inside torch.compile
    name = type(decoder).__name__
    sparse = sorted(_SPARSE_LAYERS.intersection(getattr(config, "layer_types", None) or ()))
    if sparse:
        raise ValueError(
            f"model: wanted a language model with dense attention, got {name} with sparse "
            f"attention ({', '.join(sparse)})"
        )
    signature = inspect.signature(decoder.forward)
    takes = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
        raise ValueError(
            "model: wanted a language model that passes keyword arguments on to its attention, got "
            f"{name}, whose forward() takes none"
        )
    try:
        signature.bind(input_ids=None)
    except TypeError as error:
        raise ValueError(
            f"{_CAUSAL}, got {name}, whose forward() does not run on input_ids alone ({error})"
        ) from error
    try:
        found = survey(decoder, config, implementation)
    except UnservedAttentionError as error:
        raise ValueError(
            f"model: wanted a language model whose attention can be replaced, got {name}: {error}"
        ) from error
    if found is None:
        return []
    if not found.heads:
        why = [f"{reason} in {len(layers)} layers" for reason, layers in found.skipped.items()]
        raise ValueError(
            "model: wanted a language model with full attention through transformers' attention "
            f"functions, got {name} with " + (", ".join(why) or "no layer that calls them")
        )
    if found.unfit is not None:
        raise ValueError(f"{_CAUSAL}, got {name}, which {found.unfit}")
    return notices(found.skipped)


def notices(skipped: dict[str, list[int]]) -> list[str]:
    """What to say about layers that are left alone; windows are common, and said in the README."""
    return [
        f"VRGA is not applied in layers {layers}: {why}"
        for why, layers in skipped.items()
        if why != SLIDING_WINDOW
    ]
