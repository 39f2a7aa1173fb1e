"""Bad input: a clear message and an untouched model; what cannot be applied says so once."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)

import vrga_ext
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.processors import processor
from vrga_ext import VRGAConfig, VRGAWarning

ROW = ROWS[0]


@pytest.fixture
def family():
    return build("qwen2_5_vl")


def assert_untouched(model) -> None:
    assert not {"generate", "generate_batch", "_vrga_handle"} & set(model.__dict__)
    for module in (model, model.base_model, model.get_decoder()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    if hasattr(model.config, "get_text_config"):
        assert model.config.get_text_config()._attn_implementation == "sdpa"


def notices(record) -> list[str]:
    return [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]


def test_not_a_transformers_model():
    with pytest.raises(TypeError, match="model: wanted a transformers PreTrainedModel, got Linear"):
        vrga_ext.enable(nn.Linear(2, 2))


def test_not_a_multimodal_model():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
    )
    model = LlamaForCausalLM(config)
    with pytest.raises(
        ValueError, match=r"model: wanted a multimodal model .* got LlamaConfig without one"
    ):
        vrga_ext.enable(model)
    assert_untouched(model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config": {"gamma": 1}}, TypeError, "config: wanted a VRGAConfig, got dict"),
        ({"gamma": -1.0}, ValueError, "gamma: wanted a number"),
        ({"gama": 1.0}, TypeError, "gama: no such field"),
        (
            {"question_end": "last"},
            ValueError,
            "question_end: wanted 'auto', an index or one per sample",
        ),
        ({"question_end": 3.5}, ValueError, "an index or one per sample, got 3.5"),
        ({"question_end": [1, 3.5]}, ValueError, "an index or one per sample, got"),
        ({"question_end": True}, ValueError, "an index or one per sample, got True"),
        ({"question_end": None}, ValueError, "an index or one per sample, got None"),
    ],
)
def test_bad_argument(family, arguments, error, message):
    with pytest.raises(error, match=message):
        vrga_ext.enable(family.model, **arguments)
    assert_untouched(family.model)


def test_enabled_already(family):
    with vrga_ext.enable(family.model, gamma=1.0) as handle:
        with pytest.raises(ValueError, match="model: VRGA is enabled already"):
            vrga_ext.enable(family.model)
        assert handle.config == VRGAConfig(gamma=1.0)
        greedy(family.model, family.prompt(ROW), 2)
        assert handle.regions[0].visual_heads


def test_enabled_already_by_another_thread(family, monkeypatch):
    """Which is not done with it."""
    others = []

    def check(*arguments):
        others.append(pool.submit(vrga_ext.enable, family.model))
        wait(others, timeout=0.5)
        return []

    monkeypatch.setattr("vrga_ext.integrations.transformers.install.check_decoder", check)
    with ThreadPoolExecutor(1) as pool, vrga_ext.enable(family.model):
        error = others[0].exception()
    assert str(error) == "model: VRGA is enabled already; disable it first"
    assert_untouched(family.model)


def test_handle_is_not_entered_after_its_end(family):
    with vrga_ext.enable(family.model) as handle:
        pass
    with pytest.raises(ValueError, match="handle: wanted one that is enabled"), handle:
        pass
    assert_untouched(family.model)


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


def test_other_attention_is_replaced_aloud():
    family = build("llava")
    family.model.set_attn_implementation({"text_config": "flex_attention"})
    with pytest.warns(VRGAWarning, match="runs 'sdpa' instead of 'flex_attention'"):
        handle = vrga_ext.enable(family.model)
    handle.disable()
    assert family.model.config.get_text_config()._attn_implementation == "flex_attention"


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


def test_enable_that_fails_late_leaves_the_model_as_it_was():
    family = build("llava")
    family.model.set_attn_implementation({"text_config": "flex_attention"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VRGAWarning):
            vrga_ext.enable(family.model)
    assert family.model.config.get_text_config()._attn_implementation == "flex_attention"
    assert not {"generate", "generate_batch", "_vrga_handle"} & set(family.model.__dict__)
    assert not family.model._forward_pre_hooks
    assert not family.model.get_decoder()._forward_pre_hooks


def test_interrupted_enable_leaves_the_model_as_it_was(family, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("vrga_ext.integrations.transformers.install.check_decoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vrga_ext.enable(family.model)
    assert_untouched(family.model)


def test_shared_configuration_is_refused(family):
    other = type(family.model)(family.model.config).eval()
    with (
        vrga_ext.enable(family.model),
        pytest.raises(ValueError, match=r"model: wanted .* of its own.*\(disable VRGA there\)"),
    ):
        vrga_ext.enable(other)
    assert_untouched(other)


def test_copied_configuration_of_an_enabled_model(family):
    """It came with the name; the message says how to change it."""
    with vrga_ext.enable(family.model):
        other = type(family.model)(copy.deepcopy(family.model.config)).eval()
        with pytest.raises(ValueError, match=r"call model.set_attn_implementation\('sdpa'\)"):
            vrga_ext.enable(other)
        other.set_attn_implementation("sdpa")
        vrga_ext.enable(other).disable()
    assert_untouched(other)


def test_new_tokens_without_a_mask_over_the_cache(family):
    with vrga_ext.enable(family.model, **LOOSE):
        cache = DynamicCache(config=family.model.config)
        greedy(family.model, family.prompt(ROW), 3, **{CACHE: cache})
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match="attention_mask: wanted one over the 26 cached"),
        ):
            family.model.generate(input_ids=torch.tensor([[5, 6]]), **{CACHE: cache})


def test_continuous_batching_is_refused(family):
    with (
        vrga_ext.enable(family.model),
        pytest.raises(RuntimeError, match="generate_batch: continuous batching is not supported"),
    ):
        family.model.generate_batch([[1, 2, 3]])
    assert "generate_batch" not in family.model.__dict__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "wanted a Region, got NoneType"),
        ({"visual_heads": ((99, 0),)}, r"got \(99, 0\)"),
        ({"visual_heads": ((0, 4),)}, r"a head below 4, got \(0, 4\)"),
        ({"boosted": [5]}, "wanted boosted as an int64 tensor, got list"),
        ({"boosted": torch.tensor([5.0])}, "wanted boosted as an int64 tensor, got torch.float32"),
        ({"boosted": torch.tensor([500])}, r"wanted boosted in \[0, \d+\), got \[500\]"),
    ],
)
def test_region_hook_that_returns_something_else(family, changes, message):
    inputs = family.prompt(ROW)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        handle.region_hook = lambda sample, region: changes and replace(region, **changes)
        with pytest.raises((TypeError, ValueError), match="region_hook: .*" + message):
            greedy(family.model, inputs, 2)
        handle.region_hook = None
        greedy(family.model, inputs, 2)
    assert_untouched(family.model)
