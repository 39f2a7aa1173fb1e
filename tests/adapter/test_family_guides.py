"""Every model family takes settings of a call, in ``generate`` and in a loop, and a timed guide."""

from __future__ import annotations

import pytest
import torch

import vrga_ext
from tests.adapter.families import FAMILIES, LOOSE, ROWS, build, greedy, logits

NEW = 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_guide_that_ends_and_a_call_that_is_left_alone(name):
    family = build(name)
    inputs = family.prompt(ROWS[0])
    image = torch.isin(inputs["input_ids"][0], torch.tensor(sorted(family.image_tokens)))
    tokens = image.nonzero().flatten().tolist()[:3]
    with torch.no_grad():
        prompt = family.model(**inputs).logits
        plain = greedy(family.model, inputs, NEW)
        with vrga_ext.enable(family.model, **LOOSE) as handle:
            off = family.model(**inputs, vrga=False, use_cache=True)
            torch.testing.assert_close(off.logits, prompt, atol=1e-5, rtol=1e-5)
            assert not len(handle.regions[0].boosted)
            greedy(family.model, inputs, NEW)
            heads = handle.regions[0].visual_heads
            told = {"gamma": 1e3, "guide": vrga_ext.Guide(tokens=tokens, heads=heads)}
            always = greedy(family.model, inputs, NEW, vrga=told)
            assert handle.regions[0].boosted.tolist() == tokens
            never = {"guide": vrga_ext.Guide(tokens=tokens, heads=heads, schedule=[(0, None)])}
            ended = greedy(family.model, inputs, NEW, vrga=told | never)
    torch.testing.assert_close(logits(ended), logits(plain), atol=1e-4, rtol=1e-4)
    assert (logits(always) - logits(plain))[1].abs().max() > 1e-3
