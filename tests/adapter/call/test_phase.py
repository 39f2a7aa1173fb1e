"""What a call is when the model, the attention or a pause changes within an answer."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, greedy, logits
from vrga_ext import VRGAWarning


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


def test_pause_between_turns(family):
    """A prompt read in a pause is not boosted afterwards; its image is not forgotten."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        cache = DynamicCache(config=model.config)
        with handle.pause():
            token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        assert handle.regions == []
        step = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        with handle.pause():
            plain = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        assert torch.equal(step, plain)
        model(input_ids=torch.tensor([[7, 8, 9]]), **{CACHE: cache})
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    assert torch.equal(handle.regions[0].image_positions, image)
    assert handle.regions[0].grid == (4, 4)


def test_pause_that_ends_within_a_prompt(family):
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        pause = handle.pause()

        def resume(module, args):
            pause.__exit__(None, None, None)

        pause.__enter__()
        hook = family.model.get_decoder().layers[0].register_forward_pre_hook(resume)
        paused = greedy(family.model, inputs, 1)
        hook.remove()
        after = greedy(family.model, inputs, 2)
    assert torch.equal(logits(paused)[0], logits(after)[0])
    assert handle.regions[0].visual_heads
