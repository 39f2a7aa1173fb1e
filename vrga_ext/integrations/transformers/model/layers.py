"""What a language model's attention layers are like, found by running its code without weights.

A copy of the decoder without storage (device ``meta``) reads two tokens: its own code then says
which layers call the attention function, with which arguments. No weight is read, nothing is
computed, and the model itself is not touched.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

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


class UnservedAttentionError(ValueError):
    """A layer's attention is of a kind that cannot be served, not even as it is."""


class Survey:
    """Collects what the attention function is called with, in place of a ``PrefillPass``."""

    def __init__(self) -> None:
        self.heads: dict[int, int] = {}  # query heads of each layer with full attention
        self.skipped: dict[str, list[int]] = {}  # why -> layers that are left alone

    @property
    def observer(self) -> Survey:
        """The survey itself."""
        return self

    def plan_of(self, layer: int) -> None:
        """Nothing is reweighted."""

    def record(self, layer: int, query: Tensor, *arguments: Any) -> None:
        """Take the query [B, H, q, D] of a layer with full attention."""
        if layer in self.heads:
            raise UnservedAttentionError(f"layer {layer} computes attention more than once")
        if any(heads != query.shape[1] for heads in self.heads.values()):
            self.skip(layer, OTHER_HEADS)
        else:
            self.heads[layer] = query.shape[1]

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
    found = Survey()
    with torch.device("meta"), no_init_weights(), torch.no_grad():
        # the one dtype that grouped matrix products have on every device
        decoder = decoder_class(config).eval().to(torch.bfloat16)
        # with a cache, else the positions are searched for several sequences in one row
        decoder(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, vrga=found)
    return found


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
    takes = inspect.signature(decoder.forward).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
        raise ValueError(
            "model: wanted a language model that passes keyword arguments on to its attention, got "
            f"{name}, whose forward() takes none"
        )
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
    return notices(found.skipped)


def notices(skipped: dict[str, list[int]]) -> list[str]:
    """What to say about layers that are left alone; windows are common, and said in the README."""
    return [
        f"VRGA is not applied in layers {layers}: {why}"
        for why, layers in skipped.items()
        if why != SLIDING_WINDOW
    ]
