"""Language models without a causal decoder or a KV cache; layers past transformers' interface."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, LlamaConfig
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

import vrga_ext
from tests.adapter import unlisted
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.test_refusals import END, Guarded, assert_refused, llava_with, noticed

ROW = ROWS[0]
CAUSAL = "writes token by token behind its KV cache, got "


# ---- no causal decoder with a KV cache -----------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "why"),
    [
        (unlisted.modernvbert, "ModernBertModel, which returns no KV cache"),
        (unlisted.neomme, "NeoMMEModel, which returns no KV cache"),
        (
            unlisted.diffusion_gemma,
            r"DiffusionGemmaDecoderModel, whose forward\(\) does not run on input_ids alone "
            r"\(missing a required argument: 'decoder_input_ids'\)",
        ),
    ],
)
def test_models_that_do_not_write_token_by_token_are_refused(builder, why):
    model, inputs = unlisted.build(builder)

    def run() -> Tensor:
        torch.manual_seed(0)  # the canvas is drawn
        with torch.no_grad():
            return model(**copy.deepcopy(inputs)).logits

    plain = run()
    assert_refused(model, CAUSAL + why)
    assert torch.equal(run(), plain)


class WithoutCache(LlamaModel):
    """Keeps its cache to itself."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        output = super().forward(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        return BaseModelOutput(last_hidden_state=output.last_hidden_state)


class ReadOnly(LlamaModel):
    """Reads the cache of another model, as a decoder of blocks does."""

    def forward(self, *args, **kwargs):
        cache = kwargs.pop(CACHE, None)
        kwargs |= {CACHE: copy.deepcopy(cache) if cache is not None else None}
        output = super().forward(*args, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=output.last_hidden_state, **{CACHE: cache or DynamicCache()}
        )


class Prefixed(LlamaModel):
    """Writes an entry of its own before the first token."""

    def forward(self, *args, **kwargs):
        ids = kwargs["input_ids"]
        if kwargs[CACHE].get_seq_length() == 0:
            ids = torch.cat([ids[:, :1], ids], 1)
        return super().forward(*args, **kwargs | {"input_ids": ids})


class Anew(LlamaModel):
    """Keeps the last call's entries only."""

    def forward(self, *args, **kwargs):
        kwargs[CACHE] = DynamicCache(config=self.config)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("decoder", "why"),
    [
        (WithoutCache, "WithoutCache, which returns no KV cache"),
        (ReadOnly, "ReadOnly, which keeps 0 entries in its KV cache after 2 tokens"),
        (Prefixed, "Prefixed, which keeps 3 entries in its KV cache after 2 tokens"),
        (Anew, "Anew, which keeps 1 entries in its KV cache after 3 tokens"),
    ],
)
def test_caches_that_do_not_hold_the_tokens_are_refused(decoder, why):
    assert_refused(llava_with(decoder).model, CAUSAL + why)


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "molmo2", "qwen3_5"])
def test_prefixes_that_see_each_other_and_linear_attention_are_served(name):
    vrga_ext.enable(build(name).model).disable()


# ---- no KV cache in a call -----------------------------------------------------------------------

NO_CACHE = "VRGA is not applied: there is no KV cache ("


class GuardedWithoutCache(Guarded):
    """A run without numbers shows nothing of it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state)


@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_decoder_that_makes_no_cache(gamma):
    """It is given one by generate, and by callers who want an answer."""
    model, inputs = unlisted.build(unlisted.granite4_vision)

    def loop(**cache: Any) -> Tensor:
        with torch.no_grad():
            first = model(**inputs, **cache).logits
            if not cache:
                return first
            step = model(input_ids=first[:, -1:].argmax(-1), **cache).logits
        return torch.cat([first, step], 1)

    def given() -> dict[str, Any]:
        return {CACHE: DynamicCache(config=model.config.get_text_config())}

    plain, plain_answer, plain_steps = loop(), loop(**given()), logits(greedy(model, inputs, 3))
    config = LOOSE | {"gamma": gamma, "question_end": inputs["input_ids"].shape[1] - 1}
    with vrga_ext.enable(model, **config) as handle, noticed() as found:
        assert all(torch.equal(loop(), plain) for _ in range(2))
        assert handle.regions == []
        made = f"the call was given none, and {type(model.get_decoder()).__name__} returned none"
        expected = [f"{NO_CACHE}{made}), so every step is a prefill"]
        assert list(handle.notices) == expected
        answer, steps = loop(**given()), logits(greedy(model, inputs, 3))
        assert handle.regions[0].visual_heads
        assert list(handle.notices) == expected
        model.generation_config.use_cache = False
        greedy(model, inputs, 3)
    assert found == [*expected, f"{NO_CACHE}use_cache=False), so every step is a prefill"]
    assert torch.equal(answer, plain_answer) == (gamma == 0.0)
    assert torch.equal(steps, plain_steps) == (gamma == 0.0)


def test_capture_without_a_cache_says_so():
    model, inputs = unlisted.build(unlisted.granite4_vision)
    with vrga_ext.capture(model) as recording, torch.no_grad(), noticed():
        model(**inputs)
        with pytest.raises(ValueError, match=r"capture: wanted .* there is no KV cache"):
            _ = recording.last


def test_output_without_a_cache_shows_at_the_first_prompt():
    family = llava_with(GuardedWithoutCache)
    inputs = family.prompt(ROW)
    with torch.no_grad():
        plain = family.model(**inputs).logits
        with vrga_ext.enable(family.model, **LOOSE, question_end=END), noticed() as found:
            ours = [family.model(**inputs).logits for _ in range(2)]
    assert all(torch.equal(run, plain) for run in ours)
    assert [notice.split("(")[0] + "(" for notice in found] == [NO_CACHE]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_output_as_a_tuple(name):
    """The cache is one of its items, and the answer goes on from there."""
    family = build(name)
    inputs = family.prompt(ROW)
    last = inputs["input_ids"].shape[1] - 1

    def run() -> Tensor:
        with torch.no_grad():
            first = family.model(**inputs, return_dict=False)
            cache = next(item for item in first if isinstance(item, DynamicCache))
            step = {"input_ids": first[0][:, -1:].argmax(-1), CACHE: cache}
            return family.model(**step, return_dict=False)[0]

    plain = run()
    with vrga_ext.enable(family.model, **LOOSE, question_end=last) as handle:
        ours = run()
    assert handle.notices == ()
    assert not torch.allclose(ours, plain, atol=1e-3)


# ---- layers past the attention interface ---------------------------------------------------------


def left_out(*layers: int) -> str:
    how = "they attend past transformers' attention functions"
    return f"VRGA is not applied in layers {list(layers)}: {how}"


def patched(attention: Any) -> None:
    """Attention with a forward of its own, which calls sdpa itself."""
    stock = attention.forward
    config = copy.deepcopy(attention.config)
    config._attn_implementation = "sdpa"

    def forward(self, *args, **kwargs):
        before, self.config = self.config, config
        try:
            return stock(*args, **kwargs)
        finally:
            self.config = before

    attention.forward = MethodType(forward, attention)


def configured(attention: Any) -> None:
    """Attention with a configuration of its own; "eager" would want a mask made for it."""
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "plain"


AttentionInterface.register(
    "plain", lambda *args, vrga=None, **kwargs: AttentionInterface()["sdpa"](*args, **kwargs)
)


def attentions(family: Any) -> dict[int, Any]:
    modules = family.model.get_decoder().modules()
    return {m.layer_idx: m for m in modules if hasattr(m, "layer_idx") and hasattr(m, "config")}


@pytest.mark.parametrize("change", [patched, configured])
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_layers_that_bypass_the_interface_are_named_once(name, layers, change):
    family = build(name)
    inputs = family.prompt(ROW, ROWS[1])
    plain = greedy(family.model, inputs, 3)
    for layer in layers:
        change(attentions(family)[layer])
    last = inputs["input_ids"].shape[1] - 1
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=last) as handle:
        boosted = [greedy(family.model, inputs, 3) for _ in range(2)]
    assert found == list(handle.notices) == [left_out(*layers)]
    assert handle.regions[0].layers == tuple({0, 1, 2} - set(layers))
    assert not torch.equal(logits(boosted[0]), logits(plain))
    zero = vrga_ext.VRGAConfig(gamma=0.0)
    with noticed() as found, vrga_ext.enable(family.model, zero, question_end=last):
        assert torch.equal(logits(greedy(family.model, inputs, 3)), logits(plain))
    assert found == [left_out(*layers)]


def test_layer_patched_after_enable():
    family = build("llava")
    inputs = family.prompt(ROW)
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END):
        greedy(family.model, inputs, 2)
        patched(attentions(family)[0])
        greedy(family.model, inputs, 2)
    assert found == [left_out(0)]


def test_every_layer_patched_is_said_once():
    family = build("llava")
    for attention in attentions(family).values():
        patched(attention)
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END):
        greedy(family.model, family.prompt(ROW), 2)
    assert found == ["VRGA is not applied: no layer has full attention on the prompt"]


class OwnAttention(LlamaAttention):
    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(copy.deepcopy(config), layer_idx)
        self.config._attn_implementation = "sdpa"


class OwnInOne(LlamaModel):
    """The class itself leaves a layer out."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers[1].self_attn = OwnAttention(config, 1)


class GuardedOwnInOne(Guarded, OwnInOne):
    """It shows at the first prompt only."""


@pytest.mark.parametrize("decoder", [OwnInOne, GuardedOwnInOne])
def test_class_that_bypasses_the_interface(decoder):
    family = llava_with(decoder)
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END) as handle:
        assert list(handle.notices) == [left_out(1)] * (decoder is OwnInOne)
        greedy(family.model, family.prompt(ROW), 2)
    assert found == [left_out(1)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("gemma4", 3),  # its keys and values are those of another layer
        ("qwen3_5", None),  # the layer that is not linear attention
        ("gemma3", None),  # one without a window
    ],
)
def test_layers_of_other_kinds(name, layer):
    """Among linear attention, windows, and layers that share their keys."""
    family = build(name)
    inputs = family.prompt(ROW)
    last = inputs["input_ids"].shape[1] - 1
    with vrga_ext.enable(family.model, **LOOSE, question_end=last) as handle:
        greedy(family.model, inputs, 2)
    assert handle.notices == ()
    full = handle.regions[0].layers
    layer = full[-1] if layer is None else layer
    assert layer in full
    patched(attentions(family)[layer])
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=last):
        greedy(family.model, inputs, 2)
    alone = ["VRGA is not applied: no layer has full attention on the prompt"] * (len(full) == 1)
    assert found == [left_out(layer), *alone]


@pytest.mark.parametrize("name", ["gemma3", "aya_vision"])
def test_layer_with_a_window_is_left_out_anyway(name):
    family = build(name)
    kinds = family.model.config.get_text_config().layer_types
    patched(attentions(family)[kinds.index("sliding_attention")])
    inputs = family.prompt(ROW)
    last = inputs["input_ids"].shape[1] - 1
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=last):
        greedy(family.model, inputs, 2)
    assert found == []


def test_early_exit_bypasses_nothing():
    """The first layers run alone while the number of layers is lowered, as for drafts."""
    family = build("llava")
    inputs = family.prompt(ROW)
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END) as handle:
        family.model.config.get_text_config().num_hidden_layers = 2
        greedy(family.model, inputs, 2)
    assert found == []
    assert handle.regions[0].layers == (0, 1)


@pytest.mark.parametrize("way", ["static", "chunked", "looked up"])
def test_ways_of_reading_a_prompt_bypass_nothing(way):
    family = build("llava")
    inputs = family.prompt(ROW)
    ways = {
        "static": {"cache_implementation": "static", "disable_compile": True},
        "chunked": {"prefill_chunk_size": 5},
        "looked up": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    }
    patched(attentions(family)[1])
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END):
        greedy(family.model, inputs, 4, **ways[way])
    assert found == [left_out(1)]
