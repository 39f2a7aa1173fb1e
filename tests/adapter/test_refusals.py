"""Models that cannot be served are refused by name; layers that cannot be are left alone, aloud."""

from __future__ import annotations

import contextlib
import warnings
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

import vrga_ext
from tests.adapter.families import CACHE, LOOSE, ROWS, Family, build, greedy, logits
from tests.adapter.families.others import internvl
from tests.adapter.test_errors import assert_untouched, notices
from vrga_ext.gate import Gate
from vrga_ext.integrations.transformers.call import attention
from vrga_ext.integrations.transformers.model.layers import (
    OTHER_HEADS,
    Survey,
    UnservedAttentionError,
)
from vrga_ext.steering import LayerPlan, Plan

ROW = ROWS[0]
END = 21  # the last token of ROW for a LLaVA


def llava_with(decoder: type[LlamaModel]) -> Family:
    """A LLaVA whose language model is another subclass of Llama."""
    family = build("llava")
    model = family.model
    torch.manual_seed(0)
    model.model.language_model = decoder(model.config.text_config).eval()
    return family


@contextlib.contextmanager
def noticed():
    """The notices given inside, in order."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield found
    found += notices(record)


def assert_refused(model: Any, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        vrga_ext.enable(model)
    assert_untouched(model)
    assert torch.equal(torch.get_rng_state(), state)


# ---- the whole model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_5_vl", "minicpmv4_6"])
def test_unknown_image_id(name):
    model = build(name).model
    model.config.__dict__["image_token_id"] = None
    assert_refused(model, "image_token_id or image_token_index")


def test_cross_attention_is_refused_by_name():
    config = MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 8,
            "patch_size": 4,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
        },
        text_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "cross_attention_layers": [1],
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=60,
    )
    model = MllamaForConditionalGeneration(config)
    with pytest.raises(
        ValueError, match=r"MllamaForConditionalGeneration, which sees .* cross-attention"
    ):
        vrga_ext.enable(model)
    assert_untouched(model)


def test_encoder_that_reads_the_image_is_refused():
    model = build("llava").model
    model.config.get_text_config().is_encoder_decoder = True
    assert_refused(
        model, "LlavaForConditionalGeneration, which sees the image through cross-attention"
    )


@pytest.mark.parametrize("kind", ["indexed_attention", "minimax_m3_sparse"])
def test_sparse_layers_are_refused_by_name(kind):
    model = build("llava").model
    model.config.get_text_config().layer_types = ["full_attention", "full_attention", kind]
    assert_refused(model, rf"dense attention, got LlamaModel with sparse attention \({kind}\)")


def test_attention_sinks_in_every_layer_are_refused():
    """An InternVL with the language model of gpt-oss."""
    text = {"num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    text |= {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "vocab_size": 128}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8}
    model_class, config, _ = internvl(hidden_size=64, num_attention_heads=4)
    config.text_config = transformers.GptOssConfig(**text)
    model = model_class._from_config(config, attn_implementation="eager").eval()
    with pytest.raises(
        ValueError, match="a sliding window in 1 layers, attention sinks in 1 layers"
    ):
        vrga_ext.enable(model)
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_only_sliding_layers_are_refused():
    windows = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}
    model = build("qwen2_5_vl", **windows).model
    assert_refused(model, "got Qwen2_5_VLTextModel with a sliding window in 3 layers")


# ---- the language model's code -------------------------------------------------------------------


class Deaf(LlamaModel):
    """Does not pass the keyword on."""

    def forward(self, *args, vrga=None, **kwargs):
        return super().forward(*args, **kwargs)


class Closed(LlamaModel):
    """Takes no keyword but its own."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        raise NotImplementedError


class Sparse(LlamaModel):
    """Gives the attention function keys that an indexer picked."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, indices=torch.zeros(1), **kwargs)


class Repeated(LlamaModel):
    """Computes every layer twice, as cross-attention beside self-attention does."""

    def __init__(self, config):
        super().__init__(config)
        self.layers[1] = self.layers[0]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Deaf, "attention functions, got Deaf with no layer that calls them"),
        (Closed, r"got Closed, whose forward\(\) takes none"),
        (Sparse, "got Sparse: LlamaAttention attends to keys that an indexer picks"),
        (Repeated, "got Repeated: layer 0 computes attention more than once"),
    ],
)
def test_unfit_code_is_refused(decoder, message):
    assert_refused(llava_with(decoder).model, message)


def test_forward_of_the_instance_counts():
    """As hooks of other libraries set it; one that passes keywords on will do."""
    model = build("llava").model
    decoder, stock = model.model.language_model, model.model.language_model.forward

    def closed(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        raise NotImplementedError

    decoder.forward = MethodType(closed, decoder)
    assert_refused(model, r"got LlamaModel, whose forward\(\) takes none")
    decoder.forward = lambda *args, **kwargs: stock(*args, **kwargs)
    vrga_ext.enable(model).disable()


class Guarded(LlamaModel):
    """Looks at its input, which a run without numbers cannot."""

    def forward(self, *args, **kwargs):
        given = (
            kwargs.get("input_ids") if "inputs_embeds" not in kwargs else kwargs["inputs_embeds"]
        )
        assert bool(given.isfinite().all())
        return super().forward(*args, **kwargs)


class GuardedAndDeaf(Guarded, Deaf):
    """Both: it shows at the first prompt only."""


def test_code_that_cannot_be_surveyed_is_enabled():
    family = llava_with(Guarded)
    with vrga_ext.enable(family.model, **LOOSE, question_end=END) as handle:
        greedy(family.model, family.prompt(ROW), 2)
    assert handle.regions[0].layers == (0, 1, 2)


def test_unfit_code_that_cannot_be_surveyed_shows_at_the_first_prompt():
    family = llava_with(GuardedAndDeaf)
    inputs = family.prompt(ROW)
    plain = greedy(family.model, inputs, 3)
    with vrga_ext.enable(family.model, **LOOSE, question_end=END), noticed() as found:
        ours = [greedy(family.model, inputs, 3) for _ in range(2)]
    assert found == ["VRGA is not applied: no layer has full attention on the prompt"]
    assert all(torch.equal(logits(run), logits(plain)) for run in ours)


# ---- single layers -------------------------------------------------------------------------------


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


# ---- the attention function itself ---------------------------------------------------------------


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
    plan = Plan({0: LayerPlan(flags, None, Gate("dynamic", min_ratio=99.0))})
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
