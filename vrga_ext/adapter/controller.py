"""Puts VRGA into one model and takes it out again: hooks, the ``generate`` wrapper, the handle."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vrga_ext.adapter import images
from vrga_ext.adapter.attention import IMPLEMENTATIONS, register
from vrga_ext.adapter.question import QuestionFinder
from vrga_ext.adapter.regions import Region
from vrga_ext.adapter.state import (
    PrefillPass,
    Prompt,
    QuestionEndArgument,
    RegionHook,
    SequenceState,
    attach_state,
    state_of,
)
from vrga_ext.config import VRGAConfig

HANDLE_ATTRIBUTE = "_vrga_handle"
_keys = itertools.count()
_current_prompt: contextvars.ContextVar[Prompt | None] = contextvars.ContextVar(
    "vrga_prompt", default=None
)


class VRGAWarning(UserWarning):
    """VRGA cannot be applied as asked; the model runs as it would without it."""


class VRGAHandle:
    """VRGA in one model, returned by :func:`vrga_ext.enable`; also a context manager.

    Attributes
    ----------
    regions : list of Region
        What was found for each sample of the last prompt; empty before the first one.
    region_hook : callable (sample index, Region) -> Region, optional
        Called after the selection for each sample; the heads and tokens of the region it returns
        are used. For controls and ablations: ``dataclasses.replace(region, boosted=...)``.

    Examples
    --------
    >>> with vrga_ext.enable(model, gamma=1.0) as handle:  # doctest: +SKIP
    ...     model.generate(**inputs)
    ...     handle.regions[0].visual_heads
    """

    def __init__(
        self,
        model: Any,
        config: VRGAConfig,
        finder: QuestionFinder,
        question_end: QuestionEndArgument,
    ) -> None:
        self.regions: list[Region] = []
        self.region_hook: RegionHook | None = None
        self._model = model
        self._config = config
        self._finder = finder
        self._question_end = question_end
        self._key = next(_keys)  # survives copies of the model; a reference would copy the model
        self._paused = 0
        self._noticed: set[str] = set()
        self._token_ids = images.image_token_ids(model.config)
        self._fixed_grid = images.config_grid(model.config)
        self._text_config = model.config.get_text_config(decoder=True)
        if getattr(self._text_config, "cross_attention_layers", None):
            raise ValueError(
                f"model: wanted image tokens among the keys of self-attention, got "
                f"{type(model).__name__}, which sees the image through cross-attention"
            )
        self._decoder = model.get_decoder()
        self._base: str = self._text_config._attn_implementation
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._generate = model.__dict__.get("generate")  # set on the instance by someone else

    # ---- public ------------------------------------------------------------------------------

    @property
    def config(self) -> VRGAConfig:
        """The thresholds in use."""
        return self._config

    def disable(self) -> None:
        """Restore the model, bit for bit; calling it again does nothing."""
        if self._model.__dict__.get(HANDLE_ATTRIBUTE) is not self:
            return
        for hook in self._hooks:
            hook.remove()
        for name in ("generate", "generate_batch", HANDLE_ATTRIBUTE):
            self._model.__dict__.pop(name, None)
        if self._generate is not None:
            self._model.generate = self._generate
        self._switch(self._base)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Run the model without VRGA inside a ``with`` block.

        Prompts read inside are not analysed, so their sequences are not boosted afterwards either.
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __enter__(self) -> VRGAHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.disable()

    # ---- into the model ----------------------------------------------------------------------

    def install(self) -> None:
        """Switch the language model's attention, add the hooks and wrap ``generate``."""
        register()
        base = self._base if self._base in IMPLEMENTATIONS else "sdpa"
        self._switch(IMPLEMENTATIONS[base])
        if self._text_config._attn_implementation != IMPLEMENTATIONS[base]:
            self._switch(self._base)
            raise ValueError(
                f"model: wanted a language model whose attention can be replaced, got "
                f"{type(self._decoder).__name__}, which keeps {self._base!r}"
            )
        if base != self._base:
            self._notice(
                f"the language model runs 'sdpa' instead of {self._base!r} while VRGA is enabled"
            )
        model, decoder = self._model, self._decoder
        self._hooks = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True),
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]
        if hasattr(model, "generate"):
            model.generate = self._wrapped_generate
        if hasattr(model, "generate_batch"):
            model.generate_batch = self._refused_generate_batch
        setattr(model, HANDLE_ATTRIBUTE, self)

    def _switch(self, implementation: str) -> None:
        config = self._model.config
        keys = [
            key for key in config.sub_configs if getattr(config, key, None) is self._text_config
        ]
        self._model.set_attn_implementation({keys[0] if keys else "": implementation})

    def _notice(self, message: str) -> None:
        if message not in self._noticed:
            self._noticed.add(message)
            warnings.warn(message, VRGAWarning, stacklevel=2)

    # ---- generate ----------------------------------------------------------------------------

    def _wrapped_generate(self, *args: Any, **kwargs: Any) -> Any:
        """``generate`` that tells the hooks where the prompt ends."""
        original = self._generate or functools.partial(type(self._model).generate, self._model)
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        mask = kwargs.get("attention_mask")
        prompt = Prompt(self._key, ids, kwargs.get("mm_token_type_ids"), managed=True)
        if ids is not None:
            prompt.columns = (mask if isinstance(mask, Tensor) and mask.dim() == 2 else ids).shape[
                1
            ]
        token = _current_prompt.set(prompt)
        try:
            return original(*args, **kwargs)
        finally:
            prompt.active = False
            _current_prompt.reset(token)

    def _refused_generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "generate_batch: continuous batching is not supported while VRGA is enabled; "
            "use generate(), or disable() first"
        )

    # ---- hooks -------------------------------------------------------------------------------

    def _decode_state(self, cache: Any, tokens: int) -> SequenceState | None:
        """The state of a forward call that generates, None for one that reads a prompt."""
        state = state_of(cache)
        if state is None or not state.decoding or state.prompt.owner != self._key:
            return None
        if state.prompt.active:
            return state
        return state if tokens == 1 and self._prompt() is None else None

    def _prompt(self) -> Prompt | None:
        prompt = _current_prompt.get()
        return prompt if prompt is not None and prompt.owner == self._key else None

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._decode_state(kwargs.get("past_key_values"), _tokens(args, kwargs)[1]) is not None:
            return
        prompt = self._prompt()
        if prompt is None:  # a manual loop: this call is the prompt
            ids = kwargs.get("input_ids", args[0] if args else None)
            prompt = Prompt(self._key, ids, kwargs.get("mm_token_type_ids"), managed=False)
            _current_prompt.set(prompt)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            prompt.mask = mask.detach().cpu().bool()

    def _after_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        state = state_of(kwargs.get("past_key_values"))
        if state is not None and state.decoding and state.prompt.active:
            return
        prompt = self._prompt()
        if prompt is not None and not prompt.managed:
            _current_prompt.set(None)

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._paused:
            return None
        cache = kwargs.get("past_key_values")
        batch, tokens = _tokens(args, kwargs)
        state = self._decode_state(cache, tokens)
        if state is not None:
            return (args, kwargs | {"vrga": state}) if state.layer_heads else None
        prompt = self._prompt()
        if prompt is None or not self._applies(module, prompt):
            return None

        past = int(cache.get_seq_length()) if cache is not None else 0
        state = state_of(cache)
        if state is None or past == 0 or state.prompt.owner != self._key:
            state = SequenceState()
        if state.prompt is not prompt:
            columns = prompt.columns if prompt.columns is not None else past + tokens
            state.begin(
                prompt,
                self._config,
                batch,
                past,
                columns,
                self._token_ids,
                self._question_end,
                self._finder,
            )
            if cache is not None:
                attach_state(cache, state)
            if not self._sees_image(state):
                return None
        state.add_axes(kwargs.get("position_ids"), past)
        return args, kwargs | {"vrga": PrefillPass(state, past, tokens)}

    def _after_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        reading = kwargs.get("vrga")
        if not isinstance(reading, PrefillPass):
            return
        state, cache = reading.state, kwargs.get("past_key_values")
        if cache is None:
            cache = getattr(output, "past_key_values", None)
            if cache is None:
                self._notice(
                    "VRGA is not applied without a KV cache: with use_cache=False every step "
                    "is a prefill"
                )
                return
            attach_state(cache, state)
        if reading.end >= state.image.shape[1]:
            self.regions = state.finish(self._fixed_grid, self.region_hook)

    def _applies(self, decoder: nn.Module, prompt: Prompt) -> bool:
        """Whether a prompt can be analysed; says once why not."""
        if decoder.training:
            self._notice("VRGA is not applied in training mode; call model.eval()")
        elif self._text_config._attn_implementation not in IMPLEMENTATIONS.values():
            self._notice(
                "VRGA is not applied: the attention implementation was changed to "
                f"{self._text_config._attn_implementation!r} after enable()"
            )
        elif prompt.ids is None:
            self._notice(
                "VRGA is not applied: without input_ids it is not known where the image is"
            )
        else:
            return True
        return False

    def _sees_image(self, state: SequenceState) -> bool:
        """Whether any row has an image, and what there is to say about the question's end."""
        if not state.image.any():
            self._notice("VRGA is not applied: the prompt has no image token")
            self.regions = state.without_image()
            return False
        if any(end.rule == "last_token" for end in state.ends):
            why = (
                self._finder.problem or "the prompt does not end like the processor's chat template"
            )
            self._notice(
                f"the question's end is taken to be the last prompt token, since {why}; "
                "pass processor= or question_end= to enable()"
            )
        return True


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Batch and number of tokens of a forward call."""
    given = kwargs.get("inputs_embeds")
    if given is None:
        given = kwargs.get("input_ids", args[0] if args else None)
    return (given.shape[0], given.shape[1]) if given is not None else (0, 0)
