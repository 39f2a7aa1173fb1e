"""What ``enable`` refuses, and that it leaves the model as it was."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import vrga_ext
from tests.adapter.checks import assert_untouched
from tests.adapter.families import ROWS, build, greedy
from vrga_ext import VRGAConfig, VRGAWarning

ROW = ROWS[0]


@pytest.fixture
def family():
    return build("qwen2_5_vl")


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


def test_other_attention_is_replaced_aloud():
    family = build("llava")
    family.model.set_attn_implementation({"text_config": "flex_attention"})
    with pytest.warns(VRGAWarning, match="runs 'sdpa' instead of 'flex_attention'"):
        handle = vrga_ext.enable(family.model)
    handle.disable()
    assert family.model.config.get_text_config()._attn_implementation == "flex_attention"


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


def test_continuous_batching_is_refused(family):
    with (
        vrga_ext.enable(family.model),
        pytest.raises(RuntimeError, match="generate_batch: continuous batching is not supported"),
    ):
        family.model.generate_batch([[1, 2, 3]])
    assert "generate_batch" not in family.model.__dict__
