"""Models that cannot be served are refused, by what they do."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

import vrga_ext
from tests.adapter import unlisted
from tests.adapter.checks import (
    END,
    Guarded,
    assert_refused,
    assert_untouched,
    llava_with,
    noticed,
)
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.families.others import internvl

ROW = ROWS[0]


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


CAUSAL = "writes token by token behind its KV cache, got "


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
