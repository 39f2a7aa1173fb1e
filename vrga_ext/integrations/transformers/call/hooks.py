"""What happens around a forward call: hooks before and after the model's body and its decoder.

The body (``model.base_model``) is given the tokens; the decoder is given what the attention
function needs to know about them, as the keyword argument ``vrga``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vrga_ext.integrations.transformers.call import notices, speculative
from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS, as_under_sdpa
from vrga_ext.integrations.transformers.call.context import LayerContext
from vrga_ext.integrations.transformers.call.phase import (
    Decode,
    Plain,
    answered_state,
    classify,
    unsupported_call,
    unsupported_model,
)
from vrga_ext.integrations.transformers.call.query_row import QuestionRows
from vrga_ext.integrations.transformers.call.told_settings import settings_of_generate
from vrga_ext.integrations.transformers.model import layers
from vrga_ext.integrations.transformers.model.facts import ModelFacts
from vrga_ext.integrations.transformers.observe.recorder import CapturedCall, CaptureRecorder
from vrga_ext.integrations.transformers.runtime import Runtime
from vrga_ext.integrations.transformers.sequence import told
from vrga_ext.integrations.transformers.sequence.answer import (
    answer_plan,
    answer_regions,
    plain_regions,
)
from vrga_ext.integrations.transformers.sequence.kv_cache import (
    attach_state,
    returned_cache,
    state_of,
)
from vrga_ext.integrations.transformers.sequence.places import prompt_places
from vrga_ext.integrations.transformers.sequence.prompt import (
    Prompt,
    Stage,
    current_prompt,
    enter_forward,
    generate_prompt,
    leave_forward,
    leave_interrupted,
    prompt_being_read,
)
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.plan import Plan, ScheduledPlan
from vrga_ext.region import Region
from vrga_ext.settings import Settings, read_settings

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ForwardHooks:
    """The forward hooks of one handle, and its ``generate``.

    Parameters
    ----------
    runtime
        Settings that they read, and where they publish regions and notices.
    facts
        Of the model.
    """

    def __init__(self, runtime: Runtime, facts: ModelFacts) -> None:
        self._runtime, self._facts = runtime, facts
        body, decoder = facts.body, facts.decoder
        self._hooks: list[torch.utils.hooks.RemovableHandle] = [
            body.register_forward_pre_hook(self._before_body, with_kwargs=True),
            body.register_forward_hook(self._after_body, with_kwargs=True, always_call=True),
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take the hooks out."""
        while self._hooks:
            self._hooks.pop().remove()
        leave_interrupted(self._runtime.key)

    def generate(self, original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """``generate`` that takes the settings of the call, and tells the hooks the prompt."""
        if not self._hooks:  # the method was kept by its caller
            return original(*args, **kwargs)
        settings = self._settings(settings_of_generate(model, args, kwargs))
        with generate_prompt(self._runtime.key, args, kwargs, settings) as prompt:
            self._find_places(prompt, self._facts.body_cache.of(kwargs))
            output = original(*args, **kwargs)
        told.tell_answer(prompt, kwargs, output)
        return output

    # ---- around the body: which prompt -------------------------------------------------------

    def _before_body(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments:
        facts, owner, compiling = self._facts, self._runtime.key, torch.compiler.is_compiling()
        told_settings = kwargs.pop("vrga", None)
        given = dict(zip(facts.body_arguments, args, strict=False)) | kwargs
        cache = facts.body_cache.of(given)
        if not compiling and (prompt := current_prompt.get()) and not prompt.managed:
            leave_interrupted(owner)
        state = answered_state(owner, cache, _size(given)[1])
        if state is not None:
            if self._runtime.capture is not None or state.is_scheduled:
                state.prompt.call_ids = given.get("input_ids")
            if told_settings is not None:
                self._runtime.notice(notices.SETTINGS_TOO_LATE)
        # A compiled call is left alone early: to look at its prompt would break the graph.
        elif not compiling or unsupported_call(facts, given, cache) is None:
            self._enter(given, cache, told_settings)
        return args, kwargs

    @torch.compiler.disable
    def _enter(self, given: dict[str, Any], cache: Any, told_settings: Any) -> None:
        """Make the prompt that a call reads the current one, unless it reads more of an answer."""
        self._facts.body_cache.check(given)
        prompt = prompt_being_read(self._runtime.key)
        if prompt is None:
            settings = self._settings(told_settings)
            prompt = enter_forward(self._runtime.key, given, settings)
            try:
                self._find_places(prompt, cache)
            except ValueError:
                leave_forward(self._runtime.key)
                raise
        prompt.read_call(given)
        state = state_of(cache)
        if state is None or not state.decoding or state.prompt.owner != prompt.owner:
            return
        if told.goes_on(state, prompt, int(cache.get_seq_length()), _size(given)[1]):
            state.latest, state.prompt.call_ids = prompt, prompt.call_ids
            prompt.stage = Stage.ANSWERING
            self._publish(prompt, state.regions)

    def _settings(self, told_settings: Any) -> tuple[Settings, ...]:
        """The settings of a call, from what it says; a prompt within another one has its own."""
        outer = current_prompt.get()
        if told_settings is None:
            if outer is None or outer.owner != self._runtime.key or outer.stage is Stage.OVER:
                return (self._runtime.settings,)
            return tuple(own.without_guide for own in outer.settings)
        found = read_settings(told_settings, self._runtime.settings)
        return tuple(self._facts.with_heads(own) for own in found)

    def _find_places(self, prompt: Prompt, cache: Any) -> None:
        """Find the guides of a prompt in its tokens, before the model runs."""
        if prompt.ids is None or not prompt.is_guided:
            return
        past = 0 if cache is None else int(cache.get_seq_length())
        length = past + prompt.ids.shape[1] if prompt.length is None else prompt.length
        before = state_of(cache)
        with torch.device("cpu"):
            image = prompt.image_mask(
                self._facts.placeholders.ids, past, length, None if before is None else before.image
            )
            prompt.places = prompt_places(prompt, image, self._facts)

    def _after_body(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if torch.compiler.is_compiling():  # to leave a prompt would break the graph
            given = dict(zip(self._facts.body_arguments, args, strict=False)) | kwargs
            cache = self._facts.body_cache.of(given)
            state = state_of(cache)
            if state is None and unsupported_call(self._facts, given, cache) is not None:
                return
            if state is not None and (state.latest.managed or state.latest.stage is Stage.OVER):
                return
            self._leave()
        elif (prompt := current_prompt.get()) and not prompt.managed:
            leave_forward(self._runtime.key)

    @torch.compiler.disable
    def _leave(self) -> None:
        leave_forward(self._runtime.key)

    # ---- around the decoder: what the attention function is told ------------------------------

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments:
        cache = self._facts.decoder_cache.of(kwargs)
        kwargs = as_under_sdpa(kwargs, cache)
        batch, tokens = _size({"input_ids": args[0]} | kwargs if args else kwargs)
        phase = classify(self._runtime.key, self._facts, kwargs, cache, tokens)
        if isinstance(phase, Decode):
            context = self._decode_context(phase.state, cache, batch, tokens)
            return args, kwargs if context is None else kwargs | {"vrga": context}
        if isinstance(phase, Plain):
            self._not_applied(phase.why)
            return args, kwargs
        return self._read(module, args, kwargs, cache, batch, tokens)

    def _not_applied(self, why: str) -> None:
        if not self._runtime.pauses:
            self._runtime.notice(notices.NOT_APPLIED + why)

    def _decode_context(
        self, state: SequenceState, cache: Any, batch: int, tokens: int
    ) -> LayerContext | None:
        """What the layers of a decode step are told, if anything is reweighted or captured."""
        runtime = self._runtime
        if runtime.pauses or (state.plan is None and runtime.capture is None):
            return None
        why = unsupported_model(self._facts)
        if why is None and state.batch != batch:
            why = notices.SEQUENCES_MOVED
        if why is not None:
            self._not_applied(why)
            return None
        plan: Plan | ScheduledPlan | None = state.plan
        if state.plan is not None and state.plan.schedule is not None:
            ids = speculative.cut_ids(state.prompt.call_ids, slice(None), tokens)
            flags = state.plan.schedule.flags_at(cache.get_seq_length(), ids, tokens)
            plan = ScheduledPlan(state.plan, flags)
        captured = None
        if runtime.capture is not None:
            past = int(cache.get_seq_length())
            captured = self._capture(runtime.capture, state, past, tokens, plan)
        return captured or plan

    @torch.compiler.disable
    def _capture(
        self,
        recorder: CaptureRecorder,
        state: SequenceState,
        past: int,
        tokens: int,
        plan: Plan | ScheduledPlan | None,
    ) -> CapturedCall | None:
        """What ``capture`` records of a forward call, if anything."""
        if state.decoding and not state.in_order:
            self._runtime.notice(
                "capture leaves out what follows: sequences of the KV cache were dropped, or moved "
                "to other samples"
            )
            return None
        return recorder.call(state, past, tokens, plan)

    @torch.compiler.disable
    def _read(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cache: Any,
        batch: int,
        tokens: int,
    ) -> Arguments:
        """The arguments of a call over prompt tokens, with what reads the question's row."""
        runtime, facts = self._runtime, self._facts
        prompt = prompt_being_read(runtime.key)
        if prompt is None or prompt.ids is None:
            self._not_applied(notices.PAST_THE_MODEL if prompt is None else notices.NO_IDS)
            return args, kwargs
        has_weights = facts.text_config._attn_implementation == IMPLEMENTATIONS["eager"]
        if kwargs.get("output_attentions") and not has_weights and not runtime.pauses:
            runtime.notice(notices.NO_WEIGHTS)
        past = 0 if cache is None else int(cache.get_seq_length())
        before = state_of(cache)
        state = before
        if before is None or before.prompt is not prompt:
            state = self._new_state(prompt, before, batch, past, tokens)
            if cache is not None:
                attach_state(cache, state)
        assert state is not None
        state.add_positions(kwargs.get("position_ids"), past)
        off = not state.is_applied and runtime.capture is None
        if runtime.pauses or off or not state.image.any():
            if not (runtime.pauses or off or prompt.nested):
                self._not_applied(notices.NO_IMAGE)
            regions = plain_regions(state)
            state.finish(regions, None)
            self._publish(prompt, [] if runtime.pauses else regions)
            return args, kwargs
        if not prompt.pixels or any(end.rule == "last_token" for end in state.ends):
            answered = told.may_be_answered(before, past)
            notices.notice_prompt(runtime, state, past, answered)
        count = state.image.shape[1] - past  # tokens of the prompt; drafts may follow
        if tokens > count and not state.is_identity:
            parted = self._read_before_drafts(module, args, kwargs, cache, state, tokens, count)
            if parted is not None:
                return parted
        captured = None
        if runtime.capture is not None:
            captured = self._capture(runtime.capture, state, past, tokens, None)
        return args, kwargs | {"vrga": QuestionRows(state, past, tokens, captured)}

    def _new_state(
        self, prompt: Prompt, before: SequenceState | None, batch: int, past: int, tokens: int
    ) -> SequenceState:
        """The state of a prompt behind what a cache held before."""
        runtime, facts = self._runtime, self._facts
        if before is not None and before.prompt.owner != runtime.key:
            before = None
        # An index is of the prompt that a nested one interrupts; in a pause it is unused.
        question_end = "auto" if prompt.nested or runtime.pauses else runtime.question_end
        with torch.device("cpu"):
            return SequenceState(
                prompt,
                facts.placeholders,
                facts.merge_size,
                batch,
                past,
                past + tokens if prompt.length is None else prompt.length,
                question_end,
                facts.finder,
                before,
            )

    def _read_before_drafts(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cache: Any,
        state: SequenceState,
        tokens: int,
        count: int,
    ) -> Arguments | None:
        """Run the decoder on the prompt alone; the arguments of a decode step on the drafts.

        None if the call cannot be cut: drafts are then verified together with the prompt.
        """
        layer_types = self._facts.layer_types
        try:
            speculative.check_can_cut(module, args, cache)
            first, rest = speculative.cut(kwargs, tokens, count, cache, layer_types)
        except speculative.CannotCutError as error:
            self._runtime.notice(
                f"VRGA is not applied to tokens that are drafted into the first forward call, "
                f"since {error} cannot be cut"
            )
            return None
        prompt = state.prompt
        call_ids = prompt.call_ids
        prompt.call_ids = speculative.cut_ids(call_ids, slice(None, count), tokens)
        output = module(**first)
        batch, device = output.last_hidden_state.shape[0], output.last_hidden_state.device
        speculative.fit_masks(rest, cache, tokens - count, layer_types, device)
        prompt.call_ids = speculative.cut_ids(call_ids, slice(count, None), tokens)
        context = self._decode_context(state, cache, batch, tokens - count)
        return (), rest | {"vrga": speculative.Drafts(output, context)}

    def _after_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        context = kwargs.get("vrga")
        if isinstance(context, QuestionRows):
            self._finish(context, self._facts.decoder_cache.of(kwargs), output)
        elif isinstance(context, CapturedCall):
            context.end()
        elif isinstance(context, speculative.Drafts):
            if isinstance(context.inner, CapturedCall):
                context.inner.end()
            return speculative.join(context.first, output)
        return None

    @torch.compiler.disable
    def _finish(self, reading: QuestionRows, cache: Any, output: Any) -> None:
        """A call over prompt tokens is over: select heads and tokens if it was the last one."""
        runtime, state = self._runtime, reading.state
        if cache is None:  # the decoder may have made one
            cache = returned_cache(output)
            if cache is None:
                runtime.notice(notices.no_cache(type(self._facts.decoder).__name__))
                return
            attach_state(cache, state)
        reading.close(cache, self._facts)
        if reading.skipped:
            for message in layers.notices(reading.skipped):
                runtime.notice(message)
        if reading.missed:
            runtime.notice(notices.missed_rows(reading.missed))
        if reading.end >= state.image.shape[1]:
            if not state.question:
                runtime.notice(notices.NOT_APPLIED + notices.NO_LAYER)
            with torch.device("cpu"):  # not the default device, if that is another
                regions = answer_regions(state, self._facts.fixed_grid, runtime.region_hook)
                plan = answer_plan(state, regions, cache)
            for region, own in zip(regions, state.settings, strict=True):
                nothing = len(region.image_positions) and not len(region.boosted)
                # A hook may leave nothing on purpose, and settings may, too.
                if nothing and own.applied and runtime.region_hook is None:
                    runtime.notice(notices.NOTHING_FOUND)
            state.finish(regions, plan)
            self._publish(state.prompt, regions)
        if reading.captured is not None:
            reading.captured.end()

    def _publish(self, prompt: Prompt, regions: list[Region]) -> None:
        """Publish regions, unless the prompt only interrupts another one of this model."""
        if not prompt.nested:
            self._runtime.publish(regions)


def _size(given: dict[str, Any]) -> tuple[int, int]:
    """Batch and number of tokens of a forward call."""
    tensor = given.get("inputs_embeds")
    tensor = given.get("input_ids") if tensor is None else tensor
    return (0, 0) if tensor is None else (tensor.shape[0], tensor.shape[1])
