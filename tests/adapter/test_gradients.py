"""Gradients through a decode step: what the native operations lack, the reference computes."""

from __future__ import annotations

import pytest
import torch

import vrga_ext
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
