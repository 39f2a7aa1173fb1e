"""Where nothing is to be changed, nothing changes: gamma 0, pause, disable, copies, errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import vrga_ext
from tests.adapter.families import CORE, LOOSE, ROWS, build, greedy, logits


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("config", [{"gamma": 0.0}, {"gamma": 0.0, "gate": "dynamic"}])
@pytest.mark.parametrize("name", CORE)
def test_gamma_zero_is_bit_identical(name, config, attn_implementation):
    family = build(name, attn_implementation=attn_implementation)
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs)
    with vrga_ext.enable(
        family.model, question_end=-1 % inputs["input_ids"].shape[1], **config
    ) as handle:
        enabled = greedy(family.model, inputs)
        assert all(region.visual_heads for region in handle.regions)  # still analysed
    assert torch.equal(logits(enabled), logits(plain))


def test_disable_is_bit_identical(family):
    inputs = family.prompt(*ROWS)
    before = dict(family.model.__dict__)
    plain = greedy(family.model, inputs)
    handle = vrga_ext.enable(family.model, question_end=20, **LOOSE)
    boosted = greedy(family.model, inputs)
    handle.disable()
    handle.disable()
    assert not torch.equal(logits(boosted), logits(plain))
    assert torch.equal(logits(boosted)[0], logits(plain)[0])  # the prefill is never modified
    assert torch.equal(logits(greedy(family.model, inputs)), logits(plain))
    assert set(family.model.__dict__) == set(before)
    assert family.model.config.get_text_config()._attn_implementation == "sdpa"
    for module in (family.model, family.model.base_model, family.model.get_decoder()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_enable_again_after_disable(family):
    inputs = family.prompt(*ROWS)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE):
        first = greedy(family.model, inputs)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE):
        again = greedy(family.model, inputs)
    vrga_ext.disable(family.model)
    assert torch.equal(logits(first), logits(again))


def test_pause(family):
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE) as handle:
        boosted = greedy(family.model, inputs)
        with handle.pause():
            paused = greedy(family.model, inputs)
        resumed = greedy(family.model, inputs)
    assert torch.equal(logits(paused), logits(plain))
    assert torch.equal(logits(resumed), logits(boosted))
    assert not torch.equal(logits(boosted), logits(plain))


@pytest.mark.parametrize("name", CORE)
def test_copies_are_independent(name):
    family = build(name)
    inputs = family.prompt(*ROWS)
    handle = vrga_ext.enable(family.model, question_end=20, **LOOSE)
    copies = [copy.deepcopy(family.model), pickle.loads(pickle.dumps(family.model))]
    boosted = greedy(family.model, inputs)
    handle.disable()
    plain = greedy(family.model, inputs)
    for model in copies:
        assert torch.equal(logits(greedy(model, inputs)), logits(boosted))
        vrga_ext.disable(model)
        assert torch.equal(logits(greedy(model, inputs)), logits(plain))


def test_save_pretrained_leaves_no_trace(family, tmp_path):
    with vrga_ext.enable(family.model):
        family.model.save_pretrained(tmp_path)
    loaded = type(family.model).from_pretrained(tmp_path).eval()
    loaded.generation_config.eos_token_id = None
    inputs = family.prompt(*ROWS)
    assert torch.equal(logits(greedy(loaded, inputs)), logits(greedy(family.model, inputs)))
    assert "vrga" not in (tmp_path / "config.json").read_text()


def test_exception_in_generate_leaves_no_trace(family):
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs)

    def fail(ids, scores):
        if ids.shape[1] > inputs["input_ids"].shape[1] + 2:
            raise KeyboardInterrupt
        return scores

    with vrga_ext.enable(family.model, question_end=20, **LOOSE):
        boosted = greedy(family.model, inputs)
        with pytest.raises(KeyboardInterrupt):
            greedy(family.model, inputs, logits_processor=[fail])
        assert torch.equal(logits(greedy(family.model, inputs)), logits(boosted))
    assert torch.equal(logits(greedy(family.model, inputs)), logits(plain))


@pytest.mark.parametrize("config", [{}, {"gate": "dynamic"}])
def test_output_attentions_of_an_eager_model_are_complete(config):
    family = build("qwen2_5_vl", attn_implementation="eager")
    inputs = family.prompt(*ROWS)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE, **config) as handle:
        output = greedy(family.model, inputs, 4, output_attentions=True)
    assert [len(layers) for layers in output.attentions] == [3] * 4
    with vrga_ext.enable(family.model, question_end=20, gamma=0.0):
        plain = greedy(family.model, inputs, 4, output_attentions=True)
    (layer, head), boosted = handle.regions[0].visual_heads[0], handle.regions[0].boosted
    weights, before = (run.attentions[1][layer][0, head, 0] for run in (output, plain))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    if layer == 0:  # deeper layers see another hidden state
        raised = before.clone()
        raised[boosted] *= 5
        torch.testing.assert_close(weights, raised / raised.sum())


def test_output_attentions_of_the_configuration():
    """Set while enabled, before, or as an argument: the weights are the same, as under eager."""
    family = build("qwen2_5_vl", attn_implementation="eager")
    model, inputs = family.model, family.prompt(*ROWS)
    config = model.config.get_text_config()
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
        with vrga_ext.enable(model, gamma=0.0):
            config.output_attentions = True
            found = model(**inputs).attentions
        after = model(**inputs).attentions
        with vrga_ext.enable(model, gamma=0.0):
            before = model(**inputs).attentions
            config.output_attentions = False
            assert model(**inputs).attentions is None
    for layers in (found, after, before):
        assert len(layers) == len(expected)
        assert all(map(torch.equal, layers, expected))


def test_output_attentions_of_an_sdpa_model_are_refused_as_ever():
    family = build("qwen2_5_vl")
    config = family.model.config.get_text_config()
    with vrga_ext.enable(family.model), pytest.raises(ValueError, match="'eager'"):
        config.output_attentions = True
    assert not config.output_attentions


def test_two_models_may_share_a_config_object():
    family = build("qwen2_5_vl")
    other = type(family.model)(family.model.config).eval()
    other.load_state_dict(family.model.state_dict())
    other.generation_config.eos_token_id = None
    inputs = family.prompt(*ROWS)
    plain = greedy(other, inputs)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE):
        assert torch.equal(logits(greedy(other, inputs)), logits(plain))


NEW = 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gamma_zero_in_half_precision_does_not_drift(family, dtype):
    model = build(family.name).model.to(dtype)
    inputs = family.prompt(*ROWS)
    plain = greedy(model, inputs, NEW)
    with vrga_ext.enable(model, gamma=0.0) as handle:
        ours = greedy(model, inputs, NEW)
    assert torch.equal(logits(ours), logits(plain))
    assert all(region.visual_heads for region in handle.regions)
