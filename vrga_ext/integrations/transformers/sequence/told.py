"""The tokens that a KV cache was told to hold, and those that were generated from it.

They tell an answer that goes on from a prompt that begins: both are tokens that come with a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.sequence.kv_cache import caches_in, state_of
from vrga_ext.integrations.transformers.sequence.prompt import Prompt
from vrga_ext.integrations.transformers.sequence.state import SequenceState


def goes_on(state: SequenceState, prompt: Prompt, past: int, tokens: int) -> bool:
    """Whether the tokens of a call are the rest of an answer that was generated from this cache.

    They are where they repeat what the cache was told to hold and nothing but tokens follow that
    ``generate`` has returned.

    Parameters
    ----------
    state
        The state of the cache.
    prompt
        What the call came with.
    past, tokens
        Positions of the cache before the call, and tokens of the call.
    """
    ids, end = prompt.ids, past + tokens if prompt.length is None else prompt.length
    if ids is None or not state.batch or state.batch % ids.shape[0]:
        return False
    if not state.image.shape[1] <= past < end <= state.told.shape[1]:
        return False
    told = state.told[:, end - ids.shape[1] : end]
    return torch.equal(told, ids.repeat_interleave(state.batch // ids.shape[0], 0))


def may_be_answered(state: SequenceState | None, past: int) -> bool:
    """Whether the tokens after ``past`` positions of a cache may be more of an answer."""
    if state is None:  # the cache was filled without VRGA
        return past > 0
    return 0 < state.image.shape[1] < max(past, state.told.shape[1])


def tell_answer(prompt: Prompt, kwargs: Mapping[str, Any], output: Any) -> None:
    """Note on the cache what ``generate`` returned for a prompt: its tokens, and the answer's.

    ``kwargs`` are those of ``generate``: they or the output hold the cache.
    """
    sequences = getattr(output, "sequences", output)
    if not isinstance(sequences, Tensor) or sequences.dim() != 2 or prompt.length is None:
        return
    for cache in caches_in(kwargs) + caches_in(output if isinstance(output, dict) else {}):
        state = state_of(cache)
        if state is not None and state.latest is prompt and sequences.shape[0] == state.batch:
            state.tell(sequences, prompt.length - prompt.returned)
