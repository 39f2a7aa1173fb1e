"""``enable``, ``disable`` and ``regions_of``: arguments and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vrga_ext.config import VRGAConfig
from vrga_ext.guide import checked_heads
from vrga_ext.integrations.transformers.handle import (
    CHANGING,
    HANDLE_ATTRIBUTE,
    VRGAHandle,
)
from vrga_ext.integrations.transformers.runtime import VRGAWarning
from vrga_ext.integrations.transformers.sequence.kv_cache import returned_cache, state_of
from vrga_ext.prompts.pictures import PictureReader
from vrga_ext.prompts.placeholders import find_placeholders
from vrga_ext.prompts.user_turns import question_finder
from vrga_ext.region import Region, Regions
from vrga_ext.settings import Settings

__all__ = ["Region", "VRGAHandle", "VRGAWarning", "disable", "enable", "regions_of"]


def enable(
    model: Any,
    config: VRGAConfig | None = None,
    *,
    processor: Any = None,
    question_end: str | int | Sequence[int] | Tensor = "auto",
    image_token_id: int | Sequence[int] | Tensor | None = None,
    heads: Any = None,
    **overrides: Any,
) -> VRGAHandle:
    """Enable VRGA in a stock transformers model, in place.

    Parameters
    ----------
    model
        A multimodal model of transformers that writes image tokens into the prompt, or a PEFT
        wrapper around one; a model may also be wrapped after it was enabled.
    config
        Thresholds; ``VRGAConfig()`` without it.
    processor
        The model's processor. Its chat template tells where the question ends in a prompt, and
        its image and video tokens where the image is, if the configuration names none.
    question_end
        ``"auto"``: the last token of the last user turn, whether an answer follows it or not. It is
        the last prompt token where no processor is given, the prompt has no turn as its chat
        template writes them, or the image follows the question. An integer: absolute index in the
        prompt, left padding and what is in the cache already included. A sequence, array or tensor
        of integers: one per sample of the prompt.
        ``handle.question_end`` changes it for later prompts.
    image_token_id
        Id, or ids, of the tokens that the model replaces by image features. For models whose
        configuration names none; where it does, some of those it names, to leave the others out.
    heads
        (layer, head) pairs, the layer as the model counts it, or a
        :class:`vrga_ext.analysis.HeadProfile` for its ``top()``: heads that are gated in every
        prompt in place of the selected visual heads, and that ``Region.visual_heads`` then tells.
        The tokens are still selected with the visual heads of each prompt. With the dynamic gate
        those among the heads that pass it.
    **overrides
        Fields of :class:`VRGAConfig` to change.

    Returns
    -------
    VRGAHandle
        ``handle.disable()``, ``handle.pause()``, ``handle.config``, ``handle.regions``; also a
        context manager that disables VRGA at its end.

    Raises
    ------
    TypeError
        ``model`` is not a transformers model, or an argument has the wrong type.
    ValueError
        Nobody names an image token, or ``image_token_id`` is not one of the vocabulary or of the
        configuration; the model is enabled already, or cannot be served: it does not write token
        by token behind a KV cache, or no layer attends in a way that is understood; a threshold is
        out of range; ``heads`` has a head that VRGA cannot gate, or is a profile of another model;
        or the PEFT adapter adds virtual tokens to prompts. The model is left as it was.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> handle = vrga_ext.enable(model, processor=processor, gamma=0.5)
    >>> tokens = model.generate(**inputs, max_new_tokens=4)
    >>> handle.regions[0].question_rule, handle.regions[0].grid
    ('template', (6, 6))
    >>> handle.disable()
    """
    _refuse_virtual_tokens(model)
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: wanted a transformers PreTrainedModel, got {type(model).__name__}")
    if config is not None and not isinstance(config, VRGAConfig):
        raise TypeError(f"config: wanted a VRGAConfig, got {type(config).__name__}")
    config = (config or VRGAConfig()).replace(**overrides)
    settings = Settings(config, heads=checked_heads(heads))
    finder = question_finder(processor)
    with CHANGING:
        if handle_of(model) is not None:
            raise ValueError("model: VRGA is enabled already; disable it first")
        placeholders = find_placeholders(model, processor, image_token_id)
        pictures = PictureReader(processor, model.config)
        handle = VRGAHandle(model, settings, placeholders, finder, pictures, question_end)
        handle.install()
    return handle


def disable(model: Any) -> None:
    """Restore a model that VRGA was enabled in; a model without it is left as it is.

    Raises
    ------
    ValueError
        ``model`` is a shallow copy of one in which VRGA was enabled.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import load_demo
    >>> model, processor = load_demo()
    >>> handle = vrga_ext.enable(model, processor=processor)
    >>> vrga_ext.disable(model)
    """
    with CHANGING:
        handle = handle_of(unwrapped(model))
        if handle is not None:
            handle.disable()


def regions_of(answer: Any) -> Regions:
    """The regions of a given answer, whatever was asked since, in this thread or in another.

    Parameters
    ----------
    answer
        What the model returned, ``generate(..., return_dict_in_generate=True)`` or ``model(...)``,
        with its KV cache; or the cache itself.

    Returns
    -------
    list of Region
        One per sample of the last prompt that the cache holds.

    Raises
    ------
    ValueError
        ``answer`` has no KV cache, or no prompt was read into it with VRGA.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(1, seed=0), steps=0)
    >>> with vrga_ext.enable(model, processor=processor):
    ...     answer = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    >>> vrga_ext.regions_of(answer)[0].grid
    (6, 6)
    """
    cache = returned_cache(answer)
    if cache is None and hasattr(answer, "get_seq_length"):
        cache = answer
    if cache is None:
        raise ValueError(
            f"answer: wanted a KV cache, or an output that holds one (generate(..., "
            f"return_dict_in_generate=True) or model(...)), got {type(answer).__name__}"
        )
    state = state_of(cache)
    if state is None or not state.decoding:
        raise ValueError("answer: wanted one of a model in which VRGA is enabled, got another")
    return Regions(state.regions)


def handle_of(model: Any) -> VRGAHandle | None:
    """The handle of an enabled model, None of any other.

    Raises
    ------
    ValueError
        ``model`` is a shallow copy of one in which VRGA was enabled.
    """
    handle: VRGAHandle | None = getattr(model, "__dict__", {}).get(HANDLE_ATTRIBUTE)
    if handle is not None and not handle.is_of(model):
        raise ValueError(
            "model: wanted one with modules of its own, got a shallow copy (copy.copy) of a model "
            "in which VRGA was enabled; use copy.deepcopy"
        )
    return handle


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper; any other model as it is."""
    if isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model"):
        return model
    return model.get_base_model()


def _refuse_virtual_tokens(model: Any) -> None:
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            f"model: wanted prompts whose tokens are the given ones, got {type(adapter).__name__}, "
            "which adds virtual tokens"
        )
