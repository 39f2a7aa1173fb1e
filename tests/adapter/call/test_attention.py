"""The attention function of a layer: what it is given, reweights, and leaves alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

import vrga_ext
from tests.adapter.checks import END, llava_with, noticed
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy
from vrga_ext.gate import Gate
from vrga_ext.integrations.transformers.call import attention
from vrga_ext.integrations.transformers.model.layers import (
    OTHER_HEADS,
    Survey,
    UnservedAttentionError,
)
from vrga_ext.plan import GateRun, LayerPlan, Plan

ROW = ROWS[0]


class SinkAttention(LlamaAttention):
    extra = "s_aux"

    def forward(self, hidden_states, *args, **kwargs):
        kwargs[self.extra] = torch.zeros(1, 1, 1, 1, device=hidden_states.device)
        return super().forward(hidden_states, *args, **kwargs)


class BiasedAttention(SinkAttention):
    extra = "position_bias"


class PagedAttention(SinkAttention):
    extra = "cache"


class SinksInOne(LlamaModel):
    """The first layer's attention is of another kind."""

    odd: type[LlamaAttention] = SinkAttention

    def __init__(self, config):
        super().__init__(config)
        self.layers[0].self_attn = self.odd(config, 0)


class BiasInOne(SinksInOne):
    odd = BiasedAttention


class PagedInOne(SinksInOne):
    odd = PagedAttention


class HeadsInOne(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        odd = self.layers[2].self_attn
        odd.q_proj, odd.o_proj = nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)
        odd.num_key_value_groups = 4


@pytest.mark.parametrize(
    ("decoder", "layer", "why"),
    [
        (SinksInOne, 0, "attention sinks"),
        (BiasInOne, 0, "a position bias"),
        pytest.param(
            *(PagedInOne, 0, "a paged KV cache"),
            marks=pytest.mark.skipif(
                CACHE == "cache", reason="this transformers release gives it to the decoder"
            ),
        ),
        (HeadsInOne, 2, OTHER_HEADS),
    ],
)
def test_layer_that_is_left_alone_is_named_once(decoder, layer, why):
    family = llava_with(decoder)
    inputs = family.prompt(ROW)
    with noticed() as found, vrga_ext.enable(family.model, **LOOSE, question_end=END) as handle:
        for _ in range(2):
            greedy(family.model, inputs, 3)
    assert found == [f"VRGA is not applied in layers [{layer}]: {why}"]
    assert handle.regions[0].layers == tuple({0, 1, 2} - {layer})


def rows(heads: int = 2, keys: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, heads, 1, 4), (1, heads, keys, 4), (1, heads, keys, 4))
    return tuple(torch.randn(size, generator=generator) for size in sizes)


@pytest.mark.parametrize("name", ["indices", "block_indices"])
@pytest.mark.parametrize("vrga", [None, "survey"])
def test_picked_keys_never_pass(name, vrga):
    """Without the error the model would attend to every key."""
    with pytest.raises(UnservedAttentionError, match="Linear attends to keys that an indexer"):
        attention.vrga_attention(
            nn.Linear(1, 1),
            *rows(),
            None,
            vrga=vrga and Survey(),
            **{name: torch.zeros(1)},
        )


def test_attention_without_a_layer_index():
    with pytest.raises(UnservedAttentionError, match="Linear has no layer_idx"):
        attention.vrga_attention(nn.Linear(1, 1), *rows(), None, vrga=Survey())


def test_attention_without_an_eager_function_beside_it():
    with pytest.raises(UnservedAttentionError, match="Linear has no eager_attention_forward"):
        attention.vrga_eager_attention(nn.Linear(1, 1), *rows(), None)


@pytest.mark.parametrize("function", ["vrga_attention", "vrga_eager_attention"])
@pytest.mark.parametrize("scaling", [None, 0.0])
def test_scale_of_a_boosted_layer(function, scaling):
    """The default where none is given; zero is a scale."""
    query, key, value = rows()
    flags = torch.ones(1, 3, dtype=torch.uint8)
    plan = Plan({0: LayerPlan(flags, None, (GateRun(Gate("dynamic", min_ratio=99.0), 1),))})
    module = nn.Linear(1, 1)
    module.layer_idx = 0
    given = {} if scaling is None else {"scaling": scaling}
    output, _ = getattr(attention, function)(module, query, key, value, None, vrga=plan, **given)
    expected = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    torch.testing.assert_close(output, expected.transpose(1, 2))


@pytest.mark.parametrize("kind", ["sliding_attention", "chunked_attention"])
def test_layer_with_a_window_in_its_mask_alone(kind):
    module = nn.Linear(1, 1)
    module.layer_idx, module.config = 1, SimpleNamespace(layer_types=["full_attention", kind])
    found = Survey()
    attention.vrga_attention(module, *rows(), None, vrga=found)
    assert found.heads == {}
    assert found.skipped == {"a sliding window": [1]}


def test_masked_keys_do_not_count_in_float16():
    scores = torch.full((1, 1, 1, 3), 40.0, dtype=torch.float16)
    lowest = torch.finfo(torch.float16).min
    mask = torch.tensor([0.0, lowest, 0.0], dtype=torch.float16)
    assert (scores + mask)[0, 0, 0, 1] > lowest
    assert attention._masked(scores, mask)[0, 0, 0].tolist() == [40.0, lowest, 40.0]


def test_soft_capped_model_falls_back_to_eager():
    family = build("paligemma2")
    family.model.set_attn_implementation({"text_config": "flex_attention"})
    with noticed() as found:
        vrga_ext.enable(family.model).disable()
    assert found == ["the language model runs 'eager' instead of 'flex_attention'"]


PADDED_ROW = [5, 6, (4, 4), 7, 8, 9, 10, 11, 12]


def test_boolean_mask_under_eager_attention():
    """The model's own eager attention adds it as 0 and 1; a gated layer does no less."""
    model = build("llava", attn_implementation="eager").model
    inputs = build("llava").prompt(PADDED_ROW)
    steps = {}
    for gamma in (None, 1e-6, 4.0):
        handle = None if gamma is None else vrga_ext.enable(model, **LOOSE | {"gamma": gamma})
        with torch.no_grad():
            cache = model(**inputs, use_cache=True)[CACHE]
            seen = torch.ones(1, 1, 1, cache.get_seq_length() + 1, dtype=torch.bool)
            seen[..., 3:5] = False
            step = model(
                input_ids=torch.tensor([[7]]),
                attention_mask=seen,
                position_ids=torch.tensor([[cache.get_seq_length()]]),
                **{CACHE: cache},
            )
        steps[gamma] = step.logits
        if handle is not None:
            handle.disable()
    torch.testing.assert_close(steps[1e-6], steps[None], atol=1e-3, rtol=1e-3)
    assert (steps[4.0] - steps[None]).abs().max() > 1e-2
