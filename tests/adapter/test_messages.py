"""What VRGA cannot apply, it warns of once; prompts that do not fit raise an error."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.checks import notices
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from tests.prompts.processors import processor
from vrga_ext import VRGAWarning

ROW = ROWS[0]


@pytest.fixture
def family():
    return build("qwen2_5_vl")


@pytest.mark.parametrize(
    ("question_end", "message"),
    [
        (100, r"question_end: wanted an index in \[0, 24\) of the prompt, got 100 \(sample 0\)"),
        (-1, "question_end: wanted an index in"),
        ([1, 2, 3], r"question_end: wanted one index or one per sample \(2\), got 3"),
        ([23, 0], "question_end: wanted a token of sample 1, got 0, which is padding"),
    ],
)
def test_question_end_that_does_not_fit(family, question_end, message):
    inputs = family.prompt(ROW, [5, (4, 4), 7])
    plain = greedy(family.model, inputs, 3)
    with (
        vrga_ext.enable(family.model, question_end=question_end),
        pytest.raises(ValueError, match=message),
    ):
        greedy(family.model, inputs, 3)
    assert torch.equal(logits(greedy(family.model, inputs, 3)), logits(plain))


def test_question_end_is_of_prompts_that_are_analysed(family):
    """An index is not checked against others."""
    inputs, text = family.prompt(ROW), family.prompt([5, 6, 7])
    plain = logits(greedy(family.model, inputs, 2)), logits(greedy(family.model, text, 2))
    with vrga_ext.enable(family.model, question_end=500) as handle:
        with handle.pause():
            paused = greedy(family.model, inputs, 2)
        without_image = greedy(family.model, text, 2)
    assert torch.equal(logits(paused), plain[0])
    assert torch.equal(logits(without_image), plain[1])


@pytest.mark.parametrize("name", CORE)
def test_prompt_without_an_image_says_so_once(name):
    family = build(name)
    inputs = family.prompt([5, 6, 7, 8])
    plain = greedy(family.model, inputs)
    with (
        vrga_ext.enable(family.model, **LOOSE) as handle,
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        first, second = greedy(family.model, inputs), greedy(family.model, inputs)
    assert torch.equal(logits(first), logits(plain))
    assert torch.equal(logits(second), logits(plain))
    assert notices(record) == ["VRGA is not applied: the prompt has no image token"]
    assert len(handle.regions) == 1
    assert handle.regions[0].visual_heads == ()


def test_no_processor_says_so_once(family):
    inputs = family.prompt(ROW)
    with vrga_ext.enable(family.model), warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        greedy(family.model, inputs, 2)
        greedy(family.model, inputs, 2)
    (notice,) = notices(record)
    assert "last prompt token, since no processor was given" in notice


def test_prompt_of_another_template_says_so_once(family):
    inputs = family.prompt(ROW)
    other = family.prompt([5, (4, 4), 9, 8])
    with (
        vrga_ext.enable(family.model, processor=processor("thinker")) as handle,
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        greedy(family.model, inputs, 2)
        greedy(family.model, other, 2)  # ends with other tokens
        assert handle.regions[0].question_rule == "last_token"
    (notice,) = notices(record)
    assert "last prompt token, since no question was found" in notice
    assert "the prompt ends with" in notice
    assert r"<|im_end|>\n<|im_start|>assistant\n<think>\n" in notice
    assert notice.endswith("; pass question_end= to enable()")


@pytest.mark.parametrize("use_cache", ["argument", "config"])
def test_no_cache_says_so(use_cache):
    family = build("llava")
    inputs = family.prompt(ROW)
    kwargs = {"use_cache": False} if use_cache == "argument" else {}
    family.model.generation_config.use_cache = use_cache == "argument"
    plain = greedy(family.model, inputs, 3, **kwargs)
    with (
        vrga_ext.enable(family.model, **LOOSE, question_end=21),
        pytest.warns(VRGAWarning, match="there is no KV cache"),
    ):
        ours = greedy(family.model, inputs, 3, **kwargs)
    assert torch.equal(logits(ours), logits(plain))


def test_training_mode_says_so(family):
    inputs = family.prompt(ROW)
    family.model.train()
    with (
        vrga_ext.enable(family.model, **LOOSE, question_end=23),
        pytest.warns(VRGAWarning, match="training mode"),
    ):
        greedy(family.model, inputs, 3)


def test_attention_changed_after_enable_says_so(family):
    inputs = family.prompt(ROW)
    with vrga_ext.enable(family.model, **LOOSE, question_end=23):
        family.model.set_attn_implementation("sdpa")
        with pytest.warns(VRGAWarning, match="changed to 'sdpa' after enable"):
            greedy(family.model, inputs, 3)


def test_attention_changed_after_enable_stays(family):
    with vrga_ext.enable(family.model):
        family.model.set_attn_implementation("eager")
    text, vision = family.model.config.get_text_config(), family.model.config.vision_config
    assert text._attn_implementation == vision._attn_implementation == "eager"


def test_inputs_embeds_without_ids_says_so(family):
    embeds = torch.randn(1, 9, 64)
    plain = greedy(family.model, {"inputs_embeds": embeds}, 3)
    with (
        vrga_ext.enable(family.model, **LOOSE),
        pytest.warns(VRGAWarning, match="without input_ids"),
    ):
        ours = greedy(family.model, {"inputs_embeds": embeds}, 3)
    assert torch.equal(logits(ours), logits(plain))


@pytest.mark.parametrize("by_name", [True, False])
def test_call_of_the_decoder_itself_says_so(family, by_name):
    decoder = family.model.get_decoder()
    ids = torch.tensor([[5, 6, 7]])
    with (
        vrga_ext.enable(family.model, **LOOSE),
        pytest.warns(VRGAWarning, match="straight to its decoder"),
        torch.no_grad(),
    ):
        output = decoder(input_ids=ids) if by_name else decoder(ids)
    assert output.last_hidden_state.shape[:2] == ids.shape


def test_new_tokens_without_a_mask_over_the_cache(family):
    with vrga_ext.enable(family.model, **LOOSE):
        cache = DynamicCache(config=family.model.config)
        greedy(family.model, family.prompt(ROW), 3, **{CACHE: cache})
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match="attention_mask: wanted one over the 26 cached"),
        ):
            family.model.generate(input_ids=torch.tensor([[5, 6]]), **{CACHE: cache})
