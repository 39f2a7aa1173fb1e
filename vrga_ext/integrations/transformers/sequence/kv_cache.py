"""The KV cache: in calls of a model's modules and in their outputs, and VRGA's state on it.

transformers 5.24 renamed ``past_key_values`` to ``cache``, and takes the old name for some time. It
renames inside ``forward``, so that hooks may meet either name. No other file knows the names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from vrga_ext.integrations.transformers.sequence.state import SequenceState

# The newest first: where it is known, asking for an older one is a deprecation warning.
_NAMES = ("cache", "past_key_values")
_INSTALLED = next(name for name in _NAMES if name in BaseModelOutputWithPast.__annotations__)


class CacheArgument:
    """The argument of a module's ``forward`` that is the KV cache.

    Parameters
    ----------
    module
        A module of a transformers model. Its class is asked what ``forward`` takes, since code from
        elsewhere may keep the old name; if it does not tell, the installed release does.

    Attributes
    ----------
    name : str
        What ``forward`` calls it.
    """

    def __init__(self, module: nn.Module) -> None:
        taken = inspect.signature(type(module).forward).parameters
        self.name = next((name for name in _NAMES if name in taken), _INSTALLED)
        # With both in a call, transformers takes the newer one. Where forward knows the old name
        # only, `cache` is something else: the paged cache of continuous batching.
        self._names = _NAMES[_NAMES.index(self.name) :]

    def of(self, given: Mapping[str, Any]) -> Any:
        """The cache among the arguments of a call, None where there is none."""
        for name in self._names:
            if name in given:
                return given[name]
        return None

    def put(self, given: Mapping[str, Any], cache: Any) -> dict[str, Any]:
        """The arguments of a call with another cache."""
        others = {name: value for name, value in given.items() if name not in self._names}
        return others | {self.name: cache}

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse a call with a cache whose positions are not the prompt's.

        Raises
        ------
        TypeError
            For the cache of an encoder-decoder, a paged cache, or the tuples of older releases.
        """
        cache = self.of(given)
        if cache is None:
            return
        if isinstance(cache, EncoderDecoderCache) or not hasattr(cache, "get_seq_length"):
            got = type(cache).__name__
            if got == "PagedAttentionCache":
                got += ": end continuous batching before VRGA is enabled"
            raise TypeError(
                f"{self.name}: wanted the cache of a decoder whose positions are the prompt's "
                f"(DynamicCache, StaticCache, ...), got {got}"
            )


def returned_cache(output: Any) -> Any:
    """The cache in the output of a module, which may be a tuple; None where there is none."""
    own = getattr(output, "__dict__", {})  # hasattr asks for a deprecated name where there is none
    for name in _NAMES:
        if own.get(name) is not None:
            return own[name]
    items = output if isinstance(output, tuple) else ()
    return next((item for item in items if isinstance(item, Cache)), None)


def layers_with_keys(cache: Any, length: int, leave_out: Collection[int]) -> list[int]:
    """Layers of a cache, without a window, that hold the keys of ``length`` tokens at least.

    Layers in ``leave_out`` are not looked at: some caches keep their lengths on the device.
    """
    found = []
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if index in leave_out or not isinstance(layer, CacheLayerMixin):
            continue  # linear attention has no keys
        if not getattr(layer, "is_sliding", False) and int(layer.get_seq_length()) >= length > 0:
            found.append(index)
    return found


def caches_in(given: Mapping[str, Any]) -> list[Any]:
    """The caches among arguments or outputs, by the newest name that is there."""
    name = next((name for name in _NAMES if name in given), None)
    return [] if name is None or given[name] is None else [given[name]]


def state_of(cache: Any) -> SequenceState | None:
    """The state kept on a KV cache, or None."""
    return getattr(cache, "_vrga_state", None)


def attach_state(cache: Any, state: SequenceState) -> None:
    """Keep a state on a KV cache; it follows the cache's sequences."""
    cache._vrga_state = state


def _followed(stock: Callable[..., None], taken: Callable[[int, Any], Any]) -> Callable[..., None]:
    """A method that moves the sequences of a cache, and those of its state with them.

    ``taken`` tells from their number and the method's argument which sequences become the new ones.
    """

    @functools.wraps(stock)
    def moved(self: Cache, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        state = state_of(self)
        if state is not None:
            take(state, *args, *kwargs.values())

    @torch.compiler.disable  # reads the index
    def take(state: SequenceState, argument: Any) -> None:
        given = argument.cpu() if isinstance(argument, torch.Tensor) else argument
        if state.batch:  # else the cache was not followed
            state.reindex(taken(state.batch, given))

    moved.moves_vrga_state = True  # type: ignore[attr-defined]
    return moved


# In the class, where copies and pickles of a cache find them; for a cache without a state nothing
# changes. A method of the instance would refer to it, and keys and values would stay in memory
# until the garbage collector comes by.
for _name, _taken in {
    "reorder_cache": lambda batch, index: index,
    "batch_select_indices": lambda batch, index: index,
    "batch_repeat_interleave": lambda batch, times: np.arange(batch).repeat(times),
}.items():
    _stock = getattr(Cache, _name)
    if not hasattr(_stock, "moves_vrga_state"):  # this module may be imported again
        setattr(Cache, _name, _followed(_stock, _taken))
