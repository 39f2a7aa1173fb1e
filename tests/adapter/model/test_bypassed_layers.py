"""Layers that attend past transformers' attention functions are named once."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

import vrga_ext
from tests.adapter.checks import END, Guarded, llava_with, noticed
from tests.adapter.families import LOOSE, ROWS, build, greedy, logits

ROW = ROWS[0]


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
