"""The tokens that a KV cache was told to hold, and those that were generated from it.

They tell an answer that goes on from a prompt that begins: both are tokens that come with a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.on_cpu import on_cpu
from vrga_ext.integrations.transformers.sequence.prompt import UNKNOWN_TOKEN, Prompt
from vrga_ext.integrations.transformers.sequence.state import SequenceState


@on_cpu
def tell(state: SequenceState, ids: Tensor, first: int) -> None:
    """Note tokens [B or fewer, S] of the cache's columns from ``first`` on, and none after them."""
    ids, first = ids[:, max(-first, 0) :].detach().cpu(), max(first, 0)  # more than the mask covers
    ids = ids.repeat_interleave(max(state.batch // ids.shape[0], 1), 0)
    before = torch.full((state.batch, first), UNKNOWN_TOKEN)
    if state.told.shape[0] == state.batch:
        known = state.told[:, :first]
        before[:, : known.shape[1]] = known
    state.told = torch.cat([before, ids], 1)


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
        Columns of the cache before the call, and tokens of the call.
    """
    ids, end = prompt.ids, past + tokens if prompt.columns is None else prompt.columns
    if ids is None or not state.batch or state.batch % ids.shape[0]:
        return False
    if not state.image.shape[1] <= past < end <= state.told.shape[1]:
        return False
    told = state.told[:, end - ids.shape[1] : end]
    return torch.equal(told, ids.repeat_interleave(state.batch // ids.shape[0], 0))


def may_be_answered(state: SequenceState | None, past: int) -> bool:
    """Whether the tokens after ``past`` columns of a cache may be more of an answer."""
    if state is None:  # the cache was filled without VRGA
        return past > 0
    return 0 < state.image.shape[1] < max(past, state.told.shape[1])


def tell_answer(state: SequenceState, prompt: Prompt, output: Any) -> None:
    """Note what ``generate`` has returned for a prompt: its tokens, and the answer's."""
    sequences = getattr(output, "sequences", output)
    if not isinstance(sequences, Tensor) or prompt.columns is None:
        return
    if sequences.dim() == 2 and sequences.shape[0] == state.batch:
        tell(state, sequences, prompt.columns - prompt.returned)
