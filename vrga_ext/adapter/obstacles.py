"""Why VRGA cannot be applied to a model as it is now, or to a prompt; said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vrga_ext.adapter.attention import IMPLEMENTATIONS
from vrga_ext.adapter.prompt import Prompt
from vrga_ext.adapter.question import QuestionFinder
from vrga_ext.adapter.state import SequenceState
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

    def admit_image(self, state: SequenceState, finder: QuestionFinder) -> bool:
        """Whether any row has an image, and what there is to say about the question's end."""
        if not state.image.any():
            if not state.prompt.nested:
                self._notice("VRGA is not applied: the prompt has no image token")
            return False
        if any(end.rule == "last_token" for end in state.ends):
            why = finder.problem or "the prompt does not end like the processor's chat template"
            self._notice(
                f"the question's end is taken to be the last prompt token, since {why}; "
                "pass processor= or question_end= to enable()"
            )
        return True

    def notice_empty(self, regions: list[Region]) -> None:
        """Say so if there is an image in which no token was found."""
        if any(len(region.image_positions) and not len(region.boosted) for region in regions):
            self._notice("VRGA is not applied in some row: no token of its image stands out")
