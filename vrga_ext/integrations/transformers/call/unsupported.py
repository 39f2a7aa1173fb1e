"""Why VRGA cannot be applied to a model as it is now, or to a prompt; said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS
from vrga_ext.integrations.transformers.sequence.prompt import Prompt
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.prompts.question import NO_PROCESSOR, READ_BEFORE
from vrga_ext.region import Region


class Obstacles:
    """Looks for obstacles in one model.

    Parameters
    ----------
    notice
        Says something once.
    text_config
        Configuration of the language model.
    decoder
        The language model.
    """

    def __init__(self, notice: Callable[[str], None], text_config: Any, decoder: nn.Module) -> None:
        self._notice = notice
        self._text_config = text_config
        self._decoder = decoder
        self._said_of_question: set[str] = set()

    def of_model(self) -> str | None:
        """Why nothing can be analysed or boosted, if so."""
        if self._decoder.training:
            return "the model is in training mode; call model.eval()"
        got = self._text_config._attn_implementation
        if got not in IMPLEMENTATIONS.values():
            return f"the attention implementation was changed to {got!r} after enable()"
        return None

    def of_call(self, kwargs: dict[str, Any], cache: Any) -> str | None:
        """Why nothing can be analysed in a call, if so, whatever is in its prompt."""
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self._text_config, "use_cache", True)
        why = self.of_model()
        if why is None and cache is None and not use_cache:
            why = "there is no KV cache (use_cache=False), so every step is a prefill"
        return why

    def admit(
        self, prompt: Prompt | None, kwargs: dict[str, Any], cache: Any, silent: bool
    ) -> bool:
        """Whether a prompt can be analysed; ``kwargs`` and the KV cache are the decoder's."""
        why = self.of_call(kwargs, cache)
        if why is None and prompt is None:
            why = "the call went past the model that VRGA is enabled in, straight to its decoder"
        elif why is None and prompt is not None and prompt.ids is None:
            why = (
                "without input_ids it is not known where the image is; pass them as well, or call "
                "the model inside handle.image_mask(...)"
            )
        if silent:
            return why is None
        if why is not None:
            self._notice(f"VRGA is not applied: {why}")
        elif (
            kwargs.get("output_attentions")
            and self._text_config._attn_implementation != IMPLEMENTATIONS["eager"]
        ):
            self._notice(
                "attention weights are not returned: 'sdpa' does not compute them; load the model "
                "with attn_implementation='eager' to have them"
            )
        return why is None

    def admit_cache(self, cache: Any) -> bool:
        """Whether a prompt that was read left a KV cache, which its answer is written behind."""
        if cache is None:
            self._notice(
                "VRGA is not applied: there is no KV cache (the call was given none, and "
                f"{type(self._decoder).__name__} returned none), so every step is a prefill"
            )
        return cache is not None

    def admit_image(self, state: SequenceState, past: int, answered: bool) -> bool:
        """Whether any row has an image, and what there is to say about how it came.

        Parameters
        ----------
        state
            The state of the prompt.
        past
            Cache columns before it.
        answered
            Whether it may be more of an answer that the cache holds.
        """
        if not state.image.any():
            if not state.prompt.nested:
                self._notice("VRGA is not applied: the prompt has no image token")
            return False
        is_new = bool(state.image[:, past:].any())
        unknown = [end for end in state.ends if end.rule == "last_token"]
        unguided = answered and bool(unknown) and not is_new and not state.config.is_identity
        if unguided:
            self._notice(
                "tokens that came with a filled KV cache are read as a new prompt, and not guided: "
                "nothing tells that they were generated from it"
            )
        for end, has_image in zip(state.ends, state.image.any(1).tolist(), strict=True):
            if not has_image or end.rule != "last_token" or (unguided and end.why == READ_BEFORE):
                continue
            if end.why not in self._said_of_question:
                self._said_of_question.add(end.why)  # once, however prompts differ in what is seen
                seen = f" ({end.seen})" if end.seen else ""
                given = "processor= or " if end.why == NO_PROCESSOR else ""
                self._notice(
                    f"the question's end is taken to be the last prompt token, since {end.why}"
                    f"{seen}; pass {given}question_end= to enable()"
                )
        if is_new and not state.prompt.pixels:
            self._notice(
                "the prompt has image tokens and came without pixels or embeddings: heads and "
                "tokens are chosen on what the bare image tokens stand for; pass all that the "
                "processor returns"
            )
        return True

    def notice_empty(self, regions: list[Region]) -> None:
        """Say so if there is an image in which no token was found."""
        if any(len(region.image_positions) and not len(region.boosted) for region in regions):
            self._notice("VRGA is not applied in some row: no token of its image stands out")
