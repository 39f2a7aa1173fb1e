"""Gradients: of a prompt, and through a decode step, which the reference computes."""

from __future__ import annotations

import warnings

import pytest
import torch

import vrga_ext
from tests.adapter.checks import notices
from tests.adapter.families import CACHE, LOOSE, ROWS, build


def step(model, inputs) -> torch.Tensor:
    """Logits of one decode step with gradients, after a prefill without."""
    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
    return model(input_ids=torch.tensor([[9]]), **{CACHE: cache}).logits


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_gradient_of_one_projection(projection):
    """In the first layer, where nothing else on the way to the operation requires a gradient."""
    gradients = []
    for implementation in ("sdpa", "eager"):
        model = build("llava", attn_implementation=implementation).model.requires_grad_(False)
        layer = model.get_decoder().layers[0].self_attn
        weight = getattr(layer, projection).weight.requires_grad_(True)
        inputs = build("llava").prompt(ROWS[0])
        with vrga_ext.enable(model, **LOOSE, gate="dynamic"):
            step(model, inputs).square().sum().backward()
        gradients.append(weight.grad)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-3)


def test_captures_hold_no_graph():
    family = build("llava")
    with (
        vrga_ext.enable(family.model, **LOOSE, gate="dynamic"),
        vrga_ext.capture(family.model) as recording,
    ):
        assert step(family.model, family.prompt(ROWS[0])).requires_grad
    assert recording.last.gate.any()
    assert not recording.last.image_ratio.requires_grad


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
