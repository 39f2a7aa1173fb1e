"""What happens around a forward call: hooks before and after the model's body and its decoder.

The body (``model.base_model``) is given the tokens; the decoder is given what the attention
function needs to know about them, as the keyword argument ``vrga``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from vrga_ext.integrations.transformers.call import speculative
from vrga_ext.integrations.transformers.call.attention import as_under_sdpa
from vrga_ext.integrations.transformers.call.prefill import PrefillPass
from vrga_ext.integrations.transformers.call.unsupported import Obstacles
from vrga_ext.integrations.transformers.model.layers import full_layers, notices
from vrga_ext.integrations.transformers.observe.recorder import Call, WatchedCall
from vrga_ext.integrations.transformers.runtime import Runtime
from vrga_ext.integrations.transformers.sequence import told
from vrga_ext.integrations.transformers.sequence.kv_cache import (
    CacheArgument,
    attach_state,
    caches_in,
    returned_cache,
    state_of,
)
from vrga_ext.integrations.transformers.sequence.prompt import (
    Prompt,
    current_prompt,
    leave_interrupted,
    prompt_being_read,
)
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.prompts import grids, images
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder
from vrga_ext.region import Region, Regions

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ForwardHooks:
    """The forward hooks of one handle."""

    def __init__(
        self, runtime: Runtime, model: Any, placeholders: Placeholders, finder: QuestionFinder
    ) -> None:
        self._runtime = runtime
        self._finder = finder
        self._key = runtime.key
        self._text_config = model.config.get_text_config(decoder=True)
        self._layer_types = getattr(self._text_config, "layer_types", None) or []
        self._placeholders = placeholders
        self._merge = grids.merge_size(model.config)
        self._fixed_grid = images.config_grid(model.config)
        self._decoder = model.get_decoder()
        self._obstacles = Obstacles(runtime.notice, self._text_config, self._decoder)
        body = model.base_model
        self._body = model if body is self._decoder else body
        self._names = tuple(inspect.signature(type(self._body).forward).parameters)[1:]
        self._body_cache = CacheArgument(self._body)
        self._decoder_cache = CacheArgument(self._decoder)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._full_layers: frozenset[int] = frozenset()  # as far as they are known beforehand

    def add(self) -> None:
        """Register the hooks, once the attention has been switched."""
        body, decoder, config = self._body, self._decoder, self._text_config
        self._full_layers = full_layers(decoder, config, config._attn_implementation)
        self._hooks += [
            body.register_forward_pre_hook(self._before_body, with_kwargs=True),
            body.register_forward_hook(self._after_body, with_kwargs=True, always_call=True),
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]

    @property
    def active(self) -> bool:
        """Whether the hooks are registered."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Take the hooks out."""
        while self._hooks:
            self._hooks.pop().remove()
        leave_interrupted(self._key)

    # ---- around the body: which prompt -------------------------------------------------------

    def _decode_state(self, cache: Any, tokens: int) -> SequenceState | None:
        """The state of a forward call that generates, None for one that reads a prompt."""
        state = state_of(cache)
        if state is None or not state.decoding or state.prompt.owner != self._key:
            return None
        if state.run.active:
            return state
        reads_on = state.run is not state.prompt and not torch.compiler.is_compiling()
        if reads_on and current_prompt.get() is state.run:
            return state
        if tokens != 1:
            return None
        if torch.compiler.is_compiling():  # what follows cannot be traced
            return state
        if prompt_being_read(self._key) is not None:
            return None
        # A cache that was cropped or reset has lost a part of the prompt.
        return state if int(cache.get_seq_length()) >= state.image.shape[1] else None

    def _before_body(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not torch.compiler.is_compiling():
            leave_interrupted(self._key)
        given = dict(zip(self._names, args, strict=False)) | kwargs
        cache = self._body_cache.of(given)
        state = self._decode_state(cache, _size(given)[1])
        if state is None:
            if self._why_left_alone(given, cache) is None:
                self._enter(given, cache)
        elif self._runtime.recorders:
            state.prompt.call_ids = given.get("input_ids")

    def _why_left_alone(self, given: dict[str, Any], cache: Any) -> str | None:
        """Why a compiled call is left alone, if so: to look at its prompt would break the graph."""
        return self._obstacles.of_call(given, cache) if torch.compiler.is_compiling() else None

    @torch.compiler.disable
    def _enter(self, given: dict[str, Any], cache: Any) -> None:
        """Find out which prompt a call reads; in a manual loop the call is the prompt.

        Where it reads more of an answer, the answer's state goes on with its regions.
        """
        self._body_cache.check(given)
        prompt = prompt_being_read(self._key)
        if prompt is None:
            prompt = Prompt(self._key, given, outer=current_prompt.get())
            current_prompt.set(prompt)
        prompt.set_mask(given.get("attention_mask"))
        prompt.call_ids = given.get("input_ids")
        state, (_, tokens) = state_of(cache), _size(given)
        if state is None or not state.decoding or state.prompt.owner != self._key:
            return
        if told.goes_on(state, prompt, int(cache.get_seq_length()), tokens):
            state.run, state.prompt.call_ids = prompt, prompt.call_ids
            prompt.finished = True
            self.keep(prompt, state.regions)

    def tell_answer(self, prompt: Prompt, kwargs: dict[str, Any], output: Any) -> None:
        """Note on the cache what ``generate`` returned, so that another call may go on with it."""
        returned = output if isinstance(output, dict) else {}
        for cache in caches_in(kwargs) + caches_in(returned):
            state = state_of(cache)
            if state is not None and state.run is prompt:
                told.tell_answer(state, prompt, output)

    def _after_body(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if torch.compiler.is_compiling():  # to leave a prompt would break the graph
            given = dict(zip(self._names, args, strict=False)) | kwargs
            cache = self._body_cache.of(given)
            state = state_of(cache)
            if state is None and self._why_left_alone(given, cache) is not None:
                return
            if state is not None and not state.run.entered:
                return
        self._leave()

    @torch.compiler.disable
    def _leave(self) -> None:
        prompt = current_prompt.get()
        if prompt is not None and prompt.owner == self._key and prompt.entered:
            prompt.entered = False
            current_prompt.set(prompt.outer)

    # ---- around the decoder: what the attention function is told ------------------------------

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments:
        cache = self._decoder_cache.of(kwargs)
        kwargs = as_under_sdpa(kwargs, cache)
        batch, tokens = _size({"input_ids": args[0]} | kwargs if args else kwargs)
        state = self._decode_state(cache, tokens)
        if state is not None:
            with_vrga = self._with_state(args, kwargs, state, batch, tokens)
        elif (why := self._why_left_alone(kwargs, cache)) is None:
            with_vrga = self._read(module, args, kwargs, batch, tokens)
        else:
            with_vrga = None
            if not self._runtime.pauses:
                self._runtime.notice(f"VRGA is not applied: {why}")
        return (args, kwargs) if with_vrga is None else with_vrga

    @torch.compiler.disable
    def _read(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: int,
        tokens: int,
    ) -> Arguments | None:
        """The arguments of a call over prompt tokens, with the pass that records their rows."""
        runtime, cache = self._runtime, self._decoder_cache.of(kwargs)
        prompt = prompt_being_read(self._key)
        if not self._obstacles.admit(prompt, kwargs, cache, bool(runtime.pauses)):
            return None
        assert prompt is not None
        assert prompt.ids is not None

        past = int(cache.get_seq_length()) if cache is not None else 0
        state = state_of(cache)
        answered = told.may_be_answered(state, past)
        if state is None or state.prompt is not prompt:
            before = state
            if past == 0 or (state is not None and state.prompt.owner != self._key):
                before = None
            columns = past + tokens if prompt.columns is None else prompt.columns
            # An index is of the prompt that a nested one interrupts; in a pause it is unused.
            question = "auto" if prompt.nested or runtime.pauses else runtime.question_end
            ids = self._placeholders.ids
            state = SequenceState(
                prompt, runtime.config, batch, past, columns, ids, question, self._finder, before
            )
            told.tell(state, prompt.ids, columns - prompt.ids.shape[1])
            state.add_grids(self._placeholders.video_ids, self._merge)
            if cache is not None:
                attach_state(cache, state)
        state.add_positions(kwargs.get("position_ids"), past)
        if runtime.pauses or not self._obstacles.admit_image(state, past, answered):
            regions = state.finish_plain()
            self.keep(prompt, [] if runtime.pauses else regions)
            return None
        prompt_tokens = state.image.shape[1] - past
        if tokens > prompt_tokens and not runtime.config.is_identity:
            parted = self._read_before_drafts(module, args, kwargs, state, tokens, prompt_tokens)
            if parted is not None:
                return parted
        watched = self._watch(state, past, tokens)
        return args, kwargs | {"vrga": PrefillPass(state, past, tokens, watched)}

    def _read_before_drafts(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: SequenceState,
        tokens: int,
        count: int,
    ) -> Arguments | None:
        """Run the decoder on the prompt alone; the arguments of a decode step on the drafts.

        None if the call cannot be cut: drafts are then verified together with the prompt.
        """
        prompt = state.prompt
        try:
            if args:
                raise speculative.CannotCutError("a positional argument")
            if getattr(module, "lm_head", None) is not None:
                raise speculative.CannotCutError("an output of logits")
            cache, layer_types = self._decoder_cache.of(kwargs), self._layer_types
            if cache is None:
                raise speculative.CannotCutError("a call without a KV cache")
            first, rest = speculative.cut(kwargs, tokens, count, cache, layer_types)
        except speculative.CannotCutError as error:
            self._runtime.notice(
                f"VRGA is not applied to tokens that are drafted into the first forward call, "
                f"since {error} cannot be cut"
            )
            return None
        call_ids = prompt.call_ids
        prompt.call_ids = speculative.cut_ids(call_ids, slice(None, count), tokens)
        output = module(**first)
        speculative.fit_masks(
            rest, cache, tokens - count, layer_types, output.last_hidden_state.device
        )
        prompt.read = output
        prompt.call_ids = speculative.cut_ids(call_ids, slice(count, None), tokens)
        batch = output.last_hidden_state.shape[0]
        return self._with_state((), rest, state, batch, tokens - count) or ((), rest)

    def _with_state(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        state: SequenceState,
        batch: int,
        tokens: int,
    ) -> Arguments | None:
        """The arguments of a decode step, with the state if anything is boosted or watched."""
        runtime = self._runtime
        if runtime.pauses or not (state.plan or runtime.recorders):
            return None
        why = self._obstacles.of_model()
        if why is None and state.batch != batch:
            why = "rows were added to or taken out of the KV cache"
        if why is not None:
            runtime.notice(f"VRGA is not applied: {why}")
            return None
        watched = None
        if runtime.recorders:
            past = int(self._decoder_cache.of(kwargs).get_seq_length())
            watched = self._watch(state, past, tokens)
        if watched is not None:
            return args, kwargs | {"vrga": watched}
        return None if state.plan is None else (args, kwargs | {"vrga": state.plan})

    @torch.compiler.disable
    def _watch(self, state: SequenceState, past: int, tokens: int) -> WatchedCall | None:
        """The recorders' watches over a forward call; None if nobody wants anything of it."""
        if state.decoding and not state.in_order:
            self._runtime.notice(
                "capture leaves out what follows: rows of the KV cache were dropped, or moved to "
                "other samples"
            )
            return None
        call = Call(state, past, tokens, state.prompt.call_ids)
        watches = [w for r in self._runtime.recorders if (w := r.watch(call)) is not None]
        return WatchedCall(call, watches) if watches else None

    def _after_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        reading, cache = kwargs.get("vrga"), self._decoder_cache.of(kwargs)
        if isinstance(reading, WatchedCall):
            reading.end()
        elif isinstance(reading, PrefillPass):
            self._end_of(reading, cache, output)
        state = state_of(cache)
        if state is None or state.prompt.read is None:
            return None
        first, state.prompt.read = state.prompt.read, None
        return speculative.join(first, output)

    @torch.compiler.disable
    def _end_of(self, reading: PrefillPass, cache: Any, output: Any) -> None:
        """A call over prompt tokens is over: select heads and tokens if it was the last one."""
        runtime, state = self._runtime, reading.state
        reading.finish()
        if cache is None:  # the decoder may have made one
            cache = returned_cache(output)
            if not self._obstacles.admit_cache(cache):
                return
            attach_state(cache, state)
        reading.find_bypassed(cache, self._full_layers, self._text_config)
        for message in notices(reading.skipped):
            runtime.notice(message)
        if reading.missed:
            runtime.notice(
                f"layers {reading.missed} compute the end of the prompt only: their heads are left "
                "out where the question ends before it"
            )
        if reading.end >= state.image.shape[1]:
            if not state.rows:
                runtime.notice("VRGA is not applied: no layer has full attention on the prompt")
            regions = state.finish(self._fixed_grid, runtime.region_hook)
            if runtime.region_hook is None:  # a hook may leave nothing on purpose
                self._obstacles.notice_empty(regions)
            self.keep(state.prompt, regions)
        if reading.watched is not None:
            reading.watched.end()

    def keep(self, prompt: Prompt, regions: list[Region]) -> None:
        """Publish regions, unless the prompt only interrupts another one of this model."""
        if not prompt.nested:
            self._runtime.regions = Regions(regions)


def _size(given: dict[str, Any]) -> tuple[int, int]:
    """Batch and number of tokens of a forward call."""
    tensor = given.get("inputs_embeds")
    tensor = given.get("input_ids") if tensor is None else tensor
    return (0, 0) if tensor is None else (tensor.shape[0], tensor.shape[1])
