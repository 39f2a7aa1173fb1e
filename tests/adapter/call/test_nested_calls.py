"""Calls inside other calls, and after interrupted ones."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning
from vrga_ext.integrations.transformers.sequence.prompt import current_prompt

STEPS = 4


def interrupt(model, inputs):
    """Read a prompt up to its second layer."""

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.get_decoder().layers[1].register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt), torch.no_grad():
            model(**inputs, use_cache=True)
    finally:
        hook.remove()


def test_an_interrupted_call_is_forgotten(qwen_or_llava):
    """No hook of torch's runs after a KeyboardInterrupt."""
    model = qwen_or_llava.model
    other, inputs = qwen_or_llava.prompt(ROWS[0]), qwen_or_llava.prompt(ROWS[1])
    with vrga_ext.enable(model, **LOOSE) as handle:
        _, wanted = greedy_loop(model, inputs, STEPS)
        generated, (region,) = greedy(model, inputs, STEPS), handle.regions
        interrupt(model, other)
        assert torch.equal(greedy_loop(model, inputs, STEPS)[1], wanted)
        interrupt(model, other)
        assert torch.equal(logits(greedy(model, inputs, STEPS)), logits(generated))
        assert torch.equal(handle.regions[0].image_positions, region.image_positions)
        assert handle.regions[0] is not region


def test_disable_forgets_an_interrupted_call():
    family = build("llava")
    with vrga_ext.enable(family.model, **LOOSE):
        interrupt(family.model, family.prompt(ROWS[0]))
    assert current_prompt.get() is None


def test_a_call_may_be_nested_in_another_models_within_its_own():
    first, second = build("llava"), build("llava", seed=1)
    inputs, words = first.prompt(ROWS[0]), {"input_ids": torch.tensor([[5, 6]]), "use_cache": True}
    calls = []

    def then_call(model):
        def hook(*_):
            if calls.count(model) == 0:
                calls.append(model)
                model(**words)

        return hook

    first.model.model.vision_tower.register_forward_pre_hook(then_call(second.model))
    second.model.model.language_model.register_forward_pre_hook(then_call(first.model))
    with vrga_ext.enable(first.model, **LOOSE) as handle, vrga_ext.enable(second.model, **LOOSE):
        with torch.no_grad():
            first.model(**inputs, use_cache=True)
        assert calls == [second.model, first.model]
        assert handle.regions[0].visual_heads


def test_a_step_after_an_interrupted_call_is_a_step(qwen_or_llava):
    model, inputs = qwen_or_llava.model, qwen_or_llava.prompt(ROWS[1])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        tokens, wanted = greedy_loop(model, inputs, 2)
        output = model(**inputs, use_cache=True)
        interrupt(model, qwen_or_llava.prompt(ROWS[0]))
        cache = output.past_key_values
        step = model(input_ids=tokens[:, :1], **{CACHE: cache}, use_cache=True)
    assert torch.equal(step.logits[:, -1], wanted[1])


@pytest.mark.parametrize("options", [{}, {"gate": "dynamic"}])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_any_default_device(name, options):
    """Meta stands for a GPU; the types' own code runs with either."""
    family = build(name)
    inputs = family.prompt(*ROWS[:2])
    with vrga_ext.enable(family.model, **(LOOSE | options)):
        wanted = greedy(family.model, inputs, STEPS)
        with torch.device("meta"), vrga_ext.capture(family.model, rows=True) as recording:
            got = greedy(family.model, inputs, STEPS)
            rows = recording.last.image_rows()
    assert torch.equal(logits(got), logits(wanted))
    assert rows.isfinite().all()


def test_guidance_reads_a_prompt_without_an_image():
    """Its second prompt is the answer's tokens alone: neither the mask nor a notice is for it."""
    family = build("llava")
    model, inputs = family.model, family.prompt(ROWS[0])
    image = inputs["input_ids"] == model.config.image_token_id
    end = int(inputs["attention_mask"].sum()) - 1
    plain = greedy(model, inputs, STEPS, guidance_scale=1.5)
    with warnings.catch_warnings(), vrga_ext.enable(model, question_end=end, **LOOSE) as handle:
        warnings.simplefilter("error", VRGAWarning)
        boosted = greedy(model, inputs, STEPS, guidance_scale=1.5)
        with handle.image_mask(image):
            declared = greedy(model, inputs, STEPS, guidance_scale=1.5)
        assert len(handle.regions[0].boosted)
    assert not torch.equal(logits(boosted), logits(plain))
    assert torch.equal(logits(declared), logits(boosted))


def test_call_inside_generate_is_a_prompt_of_its_own(family):
    """A logits processor may run the model on another cache, as contrastive decoding does."""
    model = family.model
    inputs, other = family.prompt(ROWS[0]), family.prompt(ROWS[1], seed=1)
    nested: list[torch.Tensor] = []

    def run_other() -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config)
        first = model(**other, **{CACHE: cache}).logits[:, -1]
        token = first.argmax(-1, keepdim=True)
        return [first, model(input_ids=token, **{CACHE: cache}).logits[:, -1]]

    def contrast(ids, scores):
        deltas = getattr(model.model, "rope_deltas", None)
        nested.extend(run_other())
        if deltas is not None:
            model.model.rope_deltas = deltas
        return scores

    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        alone = greedy(model, inputs, 3)
        region = handle.regions[0]
        expected = run_other()
        ours = greedy(model, inputs, 3, logits_processor=[contrast])
    assert torch.equal(logits(ours), logits(alone))
    assert torch.equal(handle.regions[0].boosted, region.boosted)
    torch.testing.assert_close(nested[-2:], expected)


NEW = 5


def test_guidance_runs_a_second_prompt_beside_the_first(family):
    """Classifier-free guidance runs the model without the image on a cache of its own."""
    inputs = family.prompt(ROWS[0])
    how = {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[5, 6, 7]])}
    if family.name != "llava":
        pytest.skip("the Qwen models keep the rotary offsets of the last prompt on the module")
    plain = greedy(family.model, inputs, NEW, **how)
    with vrga_ext.enable(family.model, gamma=0.0):
        zero = greedy(family.model, inputs, NEW, **how)
    assert torch.equal(logits(zero), logits(plain))
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        ours = greedy(family.model, inputs, NEW, **how)
        forced = ours.sequences[0, -NEW:]
        _, expected = greedy_loop(family.model, inputs, NEW, forced=forced)
        assert len(handle.regions[0].boosted)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["generate", "forward"])
def test_prompt_inside_another_answer(how):
    """A logits processor that asks the same model something else, in every step."""
    family = build("llava")
    model, inputs, other = family.model, family.prompt(ROWS[0]), family.prompt(*ROWS[:2])

    def ask(tokens, scores):
        if how == "generate":
            model.generate(**other, max_new_tokens=1, do_sample=False)
        else:
            model(**other)
        return scores

    with vrga_ext.enable(model, **LOOSE) as handle:
        expected = greedy(model, inputs, 3)
        regions = handle.regions
        ours = greedy(model, inputs, 3, logits_processor=[ask])
        assert torch.equal(logits(ours), logits(expected))
        assert len(handle.regions) == 1
        assert torch.equal(handle.regions[0].refined_map, regions[0].refined_map)


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


@pytest.mark.parametrize(
    "context",
    [torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference mode", "gradients", "autocast"],
)
def test_inside_torch_contexts(family, context):
    """What the model computes in a context is boosted as it is computed there."""
    inputs = family.prompt(*ROWS[:2])
    end = inputs["input_ids"].shape[1] - 1
    outside = contextlib.nullcontext

    def run(where, gamma=None):
        thresholds = LOOSE | {"gamma": gamma, "question_end": end}
        enabled = outside() if gamma is None else vrga_ext.enable(family.model, **thresholds)
        with where(), enabled:
            return logits(greedy(family.model, inputs, 2))

    plain, boosted = run(context), run(context, 4.0)
    assert torch.equal(run(context, 0.0), plain)
    assert torch.equal(boosted[0], plain[0])
    expected = run(outside, 4.0)[1] - run(outside)[1]
    assert torch.nn.functional.cosine_similarity(boosted[1] - plain[1], expected).min() > 0.8
