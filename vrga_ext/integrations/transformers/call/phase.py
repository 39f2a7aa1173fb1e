"""What a forward call of the decoder is: more of an answer, tokens of a prompt, or none of ours.

====================  =====================  ======================================================
Stage of the prompt   The cache's state      A call is
====================  =====================  ======================================================
``READING``           none, or an earlier    :class:`Prefill`
                      prompt's, or half
                      read
``ANSWERING``         read                   :class:`Decode`: a step of ``generate``, drafts among
                                             its tokens or not, or more of an answer in a loop
``OVER``, or none     read                   :class:`Decode` if it has one token and the cache still
                                             holds the prompt: a step of a manual loop
any                   any                    :class:`Plain` where the model or the call is of a
                                             kind that VRGA cannot serve
====================  =====================  ======================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS
from vrga_ext.integrations.transformers.model.facts import ModelFacts
from vrga_ext.integrations.transformers.sequence.kv_cache import state_of
from vrga_ext.integrations.transformers.sequence.prompt import Stage, prompt_being_read
from vrga_ext.integrations.transformers.sequence.state import SequenceState


class Decode(NamedTuple):
    """A call that writes more of an answer.

    Attributes
    ----------
    state : SequenceState
        The state of the KV cache.
    """

    state: SequenceState


class Prefill(NamedTuple):
    """A call over tokens of a prompt."""


class Plain(NamedTuple):
    """A call that VRGA leaves alone.

    Attributes
    ----------
    why : str
        The reason, to follow "VRGA is not applied: ".
    """

    why: str


def classify(
    owner: str, facts: ModelFacts, kwargs: dict[str, Any], cache: Any, tokens: int
) -> Decode | Prefill | Plain:
    """What a forward call of the decoder is.

    Parameters
    ----------
    owner
        Key of the handle.
    facts
        Of its model.
    kwargs
        Keyword arguments of the call.
    cache
        The KV cache among them, or None.
    tokens
        Tokens of the call.
    """
    state = answered_state(owner, cache, tokens)
    if state is not None:
        return Decode(state)
    why = unsupported_call(facts, kwargs, cache)
    return Prefill() if why is None else Plain(why)


def answered_state(owner: str, cache: Any, tokens: int) -> SequenceState | None:
    """The state of a call that writes more of an answer; None of any other call."""
    state = state_of(cache)
    if state is None or not state.decoding or state.prompt.owner != owner:
        return None
    latest = state.latest
    if latest.stage is Stage.ANSWERING and (latest.managed or latest is not state.prompt):
        return state
    if tokens != 1:
        return None
    if torch.compiler.is_compiling():  # what follows cannot be traced
        return state
    if prompt_being_read(owner) is not None:
        return None
    # A cache that was cropped or reset has lost a part of the prompt.
    return state if int(cache.get_seq_length()) >= state.image.shape[1] else None


def unsupported_model(facts: ModelFacts) -> str | None:
    """Why VRGA cannot be applied to a model as it is now; None if it can."""
    if facts.decoder.training:
        return "the model is in training mode; call model.eval()"
    got = facts.text_config._attn_implementation
    if got not in IMPLEMENTATIONS.values():
        return f"the attention implementation was changed to {got!r} after enable()"
    return None


def unsupported_call(facts: ModelFacts, kwargs: dict[str, Any], cache: Any) -> str | None:
    """Why VRGA cannot be applied to a call, whatever its prompt is; None if it can."""
    why = unsupported_model(facts)
    if why is None and cache is None:
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(facts.text_config, "use_cache", True)
        if not use_cache:
            why = "there is no KV cache (use_cache=False), so every step is a prefill"
    return why
