"""Calls without a KV cache, and decoders that make none: a plain result, one warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import vrga_ext
from tests.adapter import unlisted
from tests.adapter.checks import END, Guarded, llava_with, noticed, notices
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, build, greedy, logits
from vrga_ext import VRGAWarning

ROW = ROWS[0]


NO_CACHE = "VRGA is not applied: there is no KV cache ("


class GuardedWithoutCache(Guarded):
    """A run without numbers shows nothing of it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state)


@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_decoder_that_makes_no_cache(gamma):
    """It is given one by generate, and by callers who want an answer."""
    model, inputs = unlisted.build(unlisted.granite4_vision)

    def loop(**cache: Any) -> Tensor:
        with torch.no_grad():
            first = model(**inputs, **cache).logits
            if not cache:
                return first
            step = model(input_ids=first[:, -1:].argmax(-1), **cache).logits
        return torch.cat([first, step], 1)

    def given() -> dict[str, Any]:
        return {CACHE: DynamicCache(config=model.config.get_text_config())}

    plain, plain_answer, plain_steps = loop(), loop(**given()), logits(greedy(model, inputs, 3))
    config = LOOSE | {"gamma": gamma, "question_end": inputs["input_ids"].shape[1] - 1}
    with vrga_ext.enable(model, **config) as handle, noticed() as found:
        assert all(torch.equal(loop(), plain) for _ in range(2))
        assert handle.regions == []
        made = f"the call was given none, and {type(model.get_decoder()).__name__} returned none"
        expected = [f"{NO_CACHE}{made}), so every step is a prefill"]
        assert list(handle.notices) == expected
        answer, steps = loop(**given()), logits(greedy(model, inputs, 3))
        assert handle.regions[0].visual_heads
        assert list(handle.notices) == expected
        model.generation_config.use_cache = False
        greedy(model, inputs, 3)
    assert found == [*expected, f"{NO_CACHE}use_cache=False), so every step is a prefill"]
    assert torch.equal(answer, plain_answer) == (gamma == 0.0)
    assert torch.equal(steps, plain_steps) == (gamma == 0.0)


def test_capture_without_a_cache_says_so():
    model, inputs = unlisted.build(unlisted.granite4_vision)
    with vrga_ext.capture(model) as recording, torch.no_grad(), noticed():
        model(**inputs)
        with pytest.raises(ValueError, match=r"capture: wanted .* there is no KV cache"):
            _ = recording.last


def test_output_without_a_cache_shows_at_the_first_prompt():
    family = llava_with(GuardedWithoutCache)
    inputs = family.prompt(ROW)
    with torch.no_grad():
        plain = family.model(**inputs).logits
        with vrga_ext.enable(family.model, **LOOSE, question_end=END), noticed() as found:
            ours = [family.model(**inputs).logits for _ in range(2)]
    assert all(torch.equal(run, plain) for run in ours)
    assert [notice.split("(")[0] + "(" for notice in found] == [NO_CACHE]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_output_as_a_tuple(name):
    """The cache is one of its items, and the answer goes on from there."""
    family = build(name)
    inputs = family.prompt(ROW)
    last = inputs["input_ids"].shape[1] - 1

    def run() -> Tensor:
        with torch.no_grad():
            first = family.model(**inputs, return_dict=False)
            cache = next(item for item in first if isinstance(item, DynamicCache))
            step = {"input_ids": first[0][:, -1:].argmax(-1), CACHE: cache}
            return family.model(**step, return_dict=False)[0]

    plain = run()
    with vrga_ext.enable(family.model, **LOOSE, question_end=last) as handle:
        ours = run()
    assert handle.notices == ()
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_no_cache_is_said_once(family):
    inputs = family.prompt(ROWS[0])
    how = {"use_cache": False, "suppress_tokens": [IMAGE]}  # an image token would need its pixels
    plain = greedy(family.model, inputs, 3, **how)
    with (
        vrga_ext.enable(family.model, **LOOSE),
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        ours = greedy(family.model, inputs, 3, **how)
        greedy(family.model, inputs, 3, **how)
    assert torch.equal(logits(ours), logits(plain))
    (notice,) = notices(record)
    assert "there is no KV cache" in notice


def test_no_cache_by_the_text_configuration(family):
    """A forward call whose decoder makes no cache, since its configuration says so."""
    inputs = family.prompt(ROWS[0])
    text = family.model.config.get_text_config()
    text.use_cache = False
    try:
        with (
            vrga_ext.enable(family.model, **LOOSE),
            pytest.warns(VRGAWarning, match="there is no KV cache"),
            torch.no_grad(),
        ):
            assert family.model(**inputs).get(CACHE) is None
    finally:
        text.use_cache = True
