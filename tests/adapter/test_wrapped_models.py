"""Models in PEFT, dispatched by accelerate, loaded with VRGA's attention, two at once."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop

NEW = 4


def test_enabled_by_name_when_it_was_loaded(tmp_path):
    """``from_pretrained(attn_implementation="vrga")`` asks for what ``enable`` does: refused."""
    family = build("qwen2_5_vl")
    family.model.save_pretrained(tmp_path)
    with vrga_ext.enable(family.model):  # makes the name known to transformers
        loaded = type(family.model).from_pretrained(tmp_path, attn_implementation="vrga").eval()
    plain = type(family.model).from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    inputs = family.prompt(ROWS[0])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, plain(**inputs).logits)
    with pytest.raises(ValueError, match=r"loaded with attn_implementation='vrga' \(call model"):
        vrga_ext.enable(loaded)


def test_two_models_at_once(family):
    """Each with its own thresholds, their calls interleaved."""
    other = build(family.name, seed=3).model
    inputs = family.prompt(ROWS[0])
    models, boosts = (family.model, other), (4.0, 1.0)
    expected = []
    for model, gamma in zip(models, boosts, strict=True):
        with vrga_ext.enable(model, **LOOSE | {"gamma": gamma}):
            expected.append(greedy_loop(model, inputs, NEW))
    with (
        vrga_ext.enable(models[0], **LOOSE),
        vrga_ext.enable(models[1], **LOOSE | {"gamma": 1.0}),
        torch.no_grad(),
    ):
        caches = [DynamicCache(config=model.config) for model in models]
        steps = [inputs, inputs]
        for index in range(NEW):
            for which, model in enumerate(models):
                output = model(**steps[which], **{CACHE: caches[which]})
                torch.testing.assert_close(output.logits[:, -1], expected[which][1][index])
                steps[which] = {"input_ids": expected[which][0][:, index : index + 1]}


def adapted(model):
    """A PEFT model around this one, whose adapter changes the logits."""
    peft = pytest.importorskip("peft", reason="peft, which wraps the model, is missing")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize(("first", "gamma"), [("wrapped", 0.0), ("wrapped", 4.0), ("enabled", 4.0)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_peft_model(name, first, gamma):
    """Wrapped and then enabled or the other way round, called as a whole or as its base."""
    family = build(name)
    inputs = family.prompt(ROWS[0])
    base = family.model
    thresholds = LOOSE | {"gamma": gamma}
    if first == "enabled":
        handle = vrga_ext.enable(base, **thresholds)
        model = adapted(base)
    else:
        model = adapted(base)
        handle = vrga_ext.enable(model, **thresholds)
    ours = greedy(model, inputs, NEW)
    tokens, loop = greedy_loop(model, inputs, NEW)
    _, base_loop = greedy_loop(base, inputs, NEW)
    assert handle.regions[0].visual_heads
    assert torch.equal(ours.sequences[:, -NEW:], tokens)
    torch.testing.assert_close(logits(ours), loop, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loop, base_loop)
    with vrga_ext.capture(model) as recording:
        greedy(model, inputs, NEW)
    assert recording.last.regions == tuple(handle.regions)
    vrga_ext.disable(model)
    plain = greedy(model, inputs, NEW)
    if gamma:
        assert not torch.allclose(logits(ours), logits(plain), atol=1e-2)
    else:
        assert torch.equal(logits(ours), logits(plain))
    assert "generate" not in base.__dict__


def test_peft_adapter_with_virtual_tokens_is_refused():
    peft = pytest.importorskip("peft", reason="peft, which wraps the model, is missing")
    family = build("llava")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=64, num_layers=3
    )
    config.num_attention_heads = 4
    model = peft.get_peft_model(family.model, config)
    with pytest.raises(ValueError, match="got PromptTuningConfig, which adds virtual tokens"):
        vrga_ext.enable(model)
    assert "generate" not in family.model.__dict__
    vrga_ext.enable(family.model)
    vrga_ext.disable(model)
    assert "generate" not in family.model.__dict__


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize("first", ["dispatched", "enabled"])
def test_model_dispatched_by_accelerate(first, gamma):
    """accelerate replaces the ``forward`` of every module."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is missing")
    family = build("qwen2_5_vl")
    inputs = family.prompt(ROWS[0])
    plain = greedy(family.model, inputs, NEW)
    with vrga_ext.enable(family.model, **LOOSE | {"gamma": gamma}):
        expected = greedy(family.model, inputs, NEW)
    model = family.model

    def dispatch():
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)

    if first == "dispatched":
        dispatch()
    with vrga_ext.enable(model, **LOOSE | {"gamma": gamma}):
        if first == "enabled":
            dispatch()
        ours = greedy(model, inputs, NEW)
    assert torch.equal(logits(ours), logits(expected))
    assert torch.equal(logits(greedy(model, inputs, NEW)), logits(plain))
    if gamma == 0.0:
        assert torch.equal(logits(ours), logits(plain))
