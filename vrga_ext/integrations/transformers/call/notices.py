"""What VRGA warns of when it reads a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from vrga_ext.integrations.transformers.runtime import Runtime
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.prompts.question import NO_PROCESSOR, READ_BEFORE

NOT_APPLIED = "VRGA is not applied: "
PAST_THE_MODEL = "the call went past the model that VRGA is enabled in, straight to its decoder"
NO_IDS = (
    "without input_ids it is not known where the image is; pass them as well, or call the model "
    "inside handle.image_mask(...)"
)
NO_IMAGE = "the prompt has no image token"
NO_LAYER = "no layer has full attention on the prompt"
NOTHING_FOUND = "VRGA is not applied to a sample: no token of its image stands out"
SEQUENCES_MOVED = "sequences were added to or taken out of the KV cache"
SETTINGS_TOO_LATE = (
    "vrga= of a call that writes more of an answer is ignored; pass it with the prompt's call"
)
NO_WEIGHTS = (
    "attention weights are not returned: 'sdpa' does not compute them; load the model with "
    "attn_implementation='eager' to have them"
)


def no_cache(decoder: str) -> str:
    """The notice for a prompt that left no KV cache, behind which its answer is written."""
    return (
        f"{NOT_APPLIED}there is no KV cache (the call was given none, and {decoder} returned none),"
        " so every step is a prefill"
    )


def missed_rows(layers: Sequence[int]) -> str:
    """The notice for layers that do not compute the question's row."""
    return (
        f"layers {list(layers)} compute the end of the prompt only: their heads are left out where "
        "the question ends before it"
    )


def notice_prompt(runtime: Runtime, state: SequenceState, past: int, answered: bool) -> None:
    """Warn of a prompt with an image whose question's end is a guess, or that came without pixels.

    Parameters
    ----------
    runtime
        Of the handle.
    state
        Of the prompt.
    past
        Positions of the cache before it.
    answered
        Whether it may be more of an answer that the cache holds.
    """
    is_new = bool(state.image[:, past:].any())
    has_image = state.image.any(1).tolist()
    guessed = [end for end in state.ends if end.rule == "last_token"]
    unguided = answered and bool(guessed) and not is_new and not state.is_identity
    if unguided:
        runtime.notice(
            "tokens that came with a filled KV cache are read as a new prompt, and not guided: "
            "nothing tells that they were generated from it"
        )
    for end, seen_by_it in zip(state.ends, has_image, strict=True):
        if not seen_by_it or end.rule != "last_token" or (unguided and end.why == READ_BEFORE):
            continue
        seen = f" ({end.seen})" if end.seen else ""
        given = "processor= or " if end.why == NO_PROCESSOR else ""
        runtime.notice(
            f"the question's end is taken to be the last prompt token, since {end.why}{seen}; "
            f"pass {given}question_end= to enable()",
            once_for=end.why,  # however prompts differ in what is seen
        )
    if is_new and not state.prompt.pixels:
        runtime.notice(
            "the prompt has image tokens and came without pixels or embeddings: heads and tokens "
            "are chosen on what the bare image tokens stand for; pass all that the processor "
            "returns"
        )
