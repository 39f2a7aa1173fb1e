"""What a model may be: trained, wrapped by PEFT, dispatched, shared, changed after ``enable``."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning

NEW = 4


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


def notices(record) -> list[str]:
    return [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]


# ---- training ----------------------------------------------------------------------------------


def gradients(model, inputs) -> list[torch.Tensor]:
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", ["train", "checkpointing", "eval"])
def test_gradients_of_a_prompt_are_those_of_the_plain_model(mode, family):
    """Bit for bit; in training mode nothing is analysed, which is said once."""
    model = build(family.name).model
    inputs = family.prompt(*ROWS[:2])
    model.train(mode != "eval")
    if mode == "checkpointing":
        model.gradient_checkpointing_enable()
    plain = gradients(model, inputs)
    with (
        vrga_ext.enable(model, **LOOSE, question_end=20) as handle,
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        runs = [gradients(model, inputs) for _ in range(2)]
    for ours in runs:
        assert len(ours) == len(plain) > 10
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    said = [notice for notice in notices(record) if "training mode" in notice]
    assert len(said) == (mode != "eval")
    assert bool(handle.regions) == (mode == "eval")


def test_training_mode_within_an_answer(family):
    """A decode step in training mode is not boosted either."""
    model = family.model
    with vrga_ext.enable(model, **LOOSE, question_end=20), torch.no_grad():
        cache = DynamicCache(config=model.config)
        token = model(**family.prompt(ROWS[0]), **{CACHE: cache}).logits[:, -1:].argmax(-1)
        boosted = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        model.train()
        with pytest.warns(VRGAWarning, match="training mode"):
            ours = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        model.eval()
    with torch.no_grad():
        plain = model(input_ids=token, **{CACHE: cache}).logits
    assert torch.equal(ours, plain)
    assert not torch.equal(boosted, plain)


# ---- changed after enable ----------------------------------------------------------------------


def test_attention_changed_within_an_answer(family):
    model = family.model
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        token = model(**family.prompt(ROWS[0]), **{CACHE: cache}).logits[:, -1:].argmax(-1)
        model.set_attn_implementation("sdpa")
        with pytest.warns(VRGAWarning, match="changed to 'sdpa' after enable"):
            ours = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
    with torch.no_grad():
        plain = model(input_ids=token, **{CACHE: cache}).logits
    assert torch.equal(ours, plain)


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


def test_hooks_are_left_after_a_failed_prompt(family):
    """A prompt that fails before its decoder runs is forgotten."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        _, expected = greedy_loop(model, inputs, 2)
        cache = DynamicCache(config=model.config)
        model(**inputs, **{CACHE: cache})
        with pytest.raises((RuntimeError, ValueError)):  # too few pixels for the image
            model(**inputs | {"pixel_values": inputs["pixel_values"][:0]}, **{CACHE: cache})
        other = family.prompt(ROWS[1])
        greedy_loop(model, other, 2)
        assert handle.regions[0].question_end == other["input_ids"].shape[1] - 1
        _, again = greedy_loop(model, inputs, 2)
    assert torch.equal(again, expected)


# ---- several models, several threads -----------------------------------------------------------


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


def test_loops_of_several_threads():
    family = build("llava")  # the Qwen models keep rotary offsets on the module: not for threads
    prompts = [family.prompt(row, seed=seed) for seed, row in enumerate(ROWS)]
    with vrga_ext.enable(family.model, **LOOSE):
        expected = [greedy_loop(family.model, inputs, NEW)[1] for inputs in prompts]
        with ThreadPoolExecutor(3) as pool:
            runs = list(
                pool.map(lambda i: greedy_loop(family.model, prompts[i % 3], NEW)[1], range(9))
            )
    for index, run in enumerate(runs):
        torch.testing.assert_close(run, expected[index % 3], atol=1e-5, rtol=1e-5)


# ---- wrapped -----------------------------------------------------------------------------------


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
