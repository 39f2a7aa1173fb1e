"""Puts VRGA into one model and takes it out again: hooks, the ``generate`` wrapper, the handle."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vrga_ext.adapter import images
from vrga_ext.adapter.attention import IMPLEMENTATIONS, register
from vrga_ext.adapter.prefill import PrefillPass
from vrga_ext.adapter.prompt import Prompt
from vrga_ext.adapter.question import QuestionFinder, normalise_question_end
from vrga_ext.adapter.recorder import Call, Recorder, WatchedCall
from vrga_ext.adapter.state import RegionHook, SequenceState, attach_state, state_of
from vrga_ext.config import VRGAConfig
from vrga_ext.region import Region

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
    recorders : list of Recorder
        What watches the forward calls: see :mod:`vrga_ext.adapter.recorder`.

    Examples
    --------
    >>> with vrga_ext.enable(model, gamma=1.0) as handle:  # doctest: +SKIP
    ...     model.generate(**inputs)
    ...     handle.regions[0].visual_heads
    """

    def __init__(
        self, model: Any, config: VRGAConfig, finder: QuestionFinder, question_end: Any
    ) -> None:
        self.regions: list[Region] = []
        self.region_hook: RegionHook | None = None
        self.recorders: list[Recorder] = []
        self.question_end = question_end
        self._model = model
        self._config = config
        self._finder = finder
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
        self._base: str = self._text_config._attn_implementation
        if self._base in IMPLEMENTATIONS.values():
            raise ValueError(
                "model: wanted a configuration of its own, got one that is shared with another "
                "model in which VRGA is enabled; copy the configuration or disable it there"
            )
        self._decoder = model.get_decoder()
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._generate = model.__dict__.get("generate")  # set on the instance by someone else

    # ---- public ------------------------------------------------------------------------------

    @property
    def config(self) -> VRGAConfig:
        """The thresholds in use."""
        return self._config

    @property
    def question_end(self) -> str | int | list[int]:
        """Where the question ends in the next prompts: see :func:`vrga_ext.enable`; may be set."""
        return self._question_end

    @question_end.setter
    def question_end(self, value: Any) -> None:
        self._question_end = normalise_question_end(value)

    def disable(self) -> None:
        """Restore the model, bit for bit; calling it again does nothing."""
        if self._model.__dict__.get(HANDLE_ATTRIBUTE) is self:
            self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for name in ("generate", "generate_batch", HANDLE_ATTRIBUTE):
            self._model.__dict__.pop(name, None)
        if self._generate is not None:
            self._model.generate = self._generate
        self._switch(self._base)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Run the model without VRGA inside a ``with`` block, in every thread.

        Prompts read inside are not analysed, so their answers are not boosted afterwards either,
        until the next prompt on the same cache.
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
        model, decoder = self._model, self._decoder
        try:
            self._switch(IMPLEMENTATIONS[base])
            if self._text_config._attn_implementation != IMPLEMENTATIONS[base]:
                raise ValueError(
                    f"model: wanted a language model whose attention can be replaced, got "
                    f"{type(decoder).__name__}, which keeps {self._base!r}"
                )
            self._hooks += [
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
            if base != self._base:
                self._notice(f"the language model runs 'sdpa' instead of {self._base!r}")
        except Exception:
            self._remove()
            raise

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
        given = (args[0] if args else None, kwargs.get("inputs"), kwargs.get("input_ids"))
        prompt = Prompt(
            self._key,
            next((ids for ids in given if ids is not None), None),
            kwargs.get("attention_mask"),
            outer=self._prompt(),
            managed=True,
        )
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

    def _prompt(self) -> Prompt | None:
        """The prompt of this model that is being read."""
        prompt = _current_prompt.get()
        if prompt is None or prompt.owner != self._key or prompt.finished:
            return None
        return prompt

    def _decode_state(self, cache: Any, tokens: int) -> SequenceState | None:
        """The state of a forward call that generates, None for one that reads a prompt."""
        state = state_of(cache)
        if state is None or not state.decoding or state.prompt.owner != self._key:
            return None
        if state.prompt.active:
            return state
        if tokens != 1:
            return None
        if torch.compiler.is_compiling():  # what follows cannot be traced
            return state
        if self._prompt() is not None:
            return None
        # A cache that was cropped or reset has lost a part of the prompt.
        return state if int(cache.get_seq_length()) >= state.image.shape[1] else None

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        state = self._decode_state(given.get("past_key_values"), _size(given)[1])
        if state is not None:
            if self.recorders:
                state.prompt.call_ids = given.get("input_ids")
            return
        prompt = self._prompt()
        if prompt is None:  # a manual loop: this call is the prompt
            outer = _current_prompt.get()
            prompt = Prompt(self._key, given.get("input_ids"), outer=outer)
            _current_prompt.set(prompt)
        prompt.set_mask(given.get("attention_mask"))
        prompt.call_ids = given.get("input_ids")

    def _after_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        state = state_of(kwargs.get("past_key_values"))
        if state is not None and state.prompt.active:
            return
        prompt = _current_prompt.get()
        if prompt is not None and prompt.owner == self._key and not prompt.managed:
            _current_prompt.set(prompt.outer)

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache = kwargs.get("past_key_values")
        batch, tokens = _size({"input_ids": args[0]} | kwargs if args else kwargs)
        state = self._decode_state(cache, tokens)
        if state is not None:
            return self._with_state(args, kwargs, state, batch, tokens)
        prompt = self._prompt()
        if not self._applies(module, prompt, kwargs):
            return None
        assert prompt is not None

        past = int(cache.get_seq_length()) if cache is not None else 0
        state = state_of(cache)
        if state is None or past == 0 or state.prompt.owner != self._key:
            state = SequenceState()
        if state.prompt is not prompt:
            columns = past + tokens if prompt.columns is None else prompt.columns
            question = self._question_end
            state.begin(
                prompt, self._config, batch, past, columns, self._token_ids, question, self._finder
            )
            if cache is not None:
                attach_state(cache, state)
        state.add_axes(kwargs.get("position_ids"), past)
        if self._paused or not self._sees_image(state):
            regions = state.finish_plain()
            self._keep(prompt, [] if self._paused else regions)
            return None
        watched = self._watch(state, past, tokens)
        return args, kwargs | {"vrga": PrefillPass(state, past, tokens, watched)}

    def _with_state(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: SequenceState,
        batch: int,
        tokens: int,
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of a decode step, with the state if anything is boosted or watched."""
        if self._paused or not (state.layer_heads or self.recorders):
            return None
        if not state.fits(batch):
            self._notice("VRGA is not applied: rows were added to or taken out of the KV cache")
            return None
        watched = None
        if self.recorders:
            past = int(kwargs["past_key_values"].get_seq_length())
            watched = self._watch(state, past, tokens)
        if watched is not None:
            return args, kwargs | {"vrga": watched}
        return (args, kwargs | {"vrga": state}) if state.layer_heads else None

    @torch.compiler.disable
    def _watch(self, state: SequenceState, past: int, tokens: int) -> WatchedCall | None:
        """The recorders' watches over a forward call; None if nobody wants anything of it."""
        call = Call(state, past, tokens, state.prompt.call_ids)
        watches = [watch for r in self.recorders if (watch := r.watch(call)) is not None]
        return WatchedCall(call, watches) if watches else None

    def _after_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        reading = kwargs.get("vrga")
        if isinstance(reading, WatchedCall):
            reading.end()
        if not isinstance(reading, PrefillPass):
            return
        state = reading.state
        reading.finish()
        if kwargs.get("past_key_values") is None:  # the decoder made the cache
            attach_state(output.past_key_values, state)
        if reading.end >= state.image.shape[1]:
            if not state.rows:
                self._notice("VRGA is not applied: no layer has full attention on the prompt")
            self._keep(state.prompt, state.finish(self._fixed_grid, self.region_hook))
        if reading.watched is not None:
            reading.watched.end()

    def _keep(self, prompt: Prompt, regions: list[Region]) -> None:
        """Publish regions, unless the prompt only interrupts another one of this model."""
        if prompt.outer is None or prompt.outer.owner != self._key:
            self.regions = regions

    def _applies(self, decoder: nn.Module, prompt: Prompt | None, kwargs: dict[str, Any]) -> bool:
        """Whether a prompt can be analysed; says once why not."""
        if decoder.training:
            why = "the model is in training mode; call model.eval()"
        elif self._text_config._attn_implementation not in IMPLEMENTATIONS.values():
            got = self._text_config._attn_implementation
            why = f"the attention implementation was changed to {got!r} after enable()"
        elif prompt is None:
            why = "the call went past the model that VRGA is enabled in, straight to its decoder"
        elif prompt.ids is None:
            why = "without input_ids it is not known where the image is"
        elif kwargs.get("past_key_values") is None and kwargs.get("use_cache") is False:
            why = "there is no KV cache (use_cache=False), so every step is a prefill"
        else:
            return True
        if not self._paused:
            self._notice(f"VRGA is not applied: {why}")
        return False

    def _sees_image(self, state: SequenceState) -> bool:
        """Whether any row has an image, and what there is to say about the question's end."""
        if not state.image.any():
            self._notice("VRGA is not applied: the prompt has no image token")
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


def _size(given: dict[str, Any]) -> tuple[int, int]:
    """Batch and number of tokens of a forward call."""
    tensor = given.get("inputs_embeds")
    tensor = given.get("input_ids") if tensor is None else tensor
    return (0, 0) if tensor is None else (tensor.shape[0], tensor.shape[1])
