"""``enable(heads=...)``: heads that are boosted in place of those that a prompt selects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import vrga_ext
from tests.adapter.checks import assert_untouched
from tests.adapter.families import LOOSE, ROWS, build, greedy, logits
from vrga_ext import Guide, VRGAWarning
from vrga_ext.analysis import head_profile

FACTS = "vrga_ext.integrations.transformers.model.facts"
STEPS = 4
HEADS = ((2, 3), (0, 1))


@pytest.fixture
def family():
    return build("qwen2_5_vl")


@pytest.fixture(scope="module")
def profile():
    family = build("qwen2_5_vl", seed=1)
    inputs = family.prompt(*ROWS)
    last = inputs["input_ids"].shape[1] - 1
    with vrga_ext.capture(family.model, question_end=last) as recording:
        greedy(family.model, inputs, 1)
    return head_profile(recording.captures)


def test_given_heads_are_those_that_are_boosted(family):
    """From the first prompt on; the tokens stay those that the prompt's own heads select."""
    inputs = family.prompt(*ROWS)
    last = inputs["input_ids"].shape[1] - 1
    with vrga_ext.enable(family.model, question_end=last, **LOOSE) as handle:
        greedy(family.model, inputs, 1)
        selected = list(handle.regions)
        handle.region_hook = lambda sample, region: replace(region, visual_heads=HEADS)
        wanted = logits(greedy(family.model, inputs, STEPS))
    with (
        vrga_ext.enable(family.model, question_end=last, heads=HEADS, **LOOSE) as handle,
        vrga_ext.capture(family.model) as recording,
    ):
        found = logits(greedy(family.model, inputs, STEPS))
        regions = handle.regions
    assert torch.equal(found, wanted)
    for own, region in zip(selected, regions, strict=True):
        assert own.visual_heads != HEADS == region.visual_heads
        assert torch.equal(own.boosted, region.boosted)
    gated = recording.last.generated.gate.any(3).any(0).nonzero().tolist()
    assert sorted(map(tuple, gated)) == sorted(HEADS)
    assert_untouched(family.model)


def test_heads_of_a_profile_and_of_one_call(family, profile):
    inputs = family.prompt(ROWS[0])
    last = inputs["input_ids"].shape[1] - 1
    with vrga_ext.enable(family.model, question_end=last, heads=profile, **LOOSE) as handle:
        greedy(family.model, inputs, 1)
        assert handle.regions[0].visual_heads == profile.top()
        greedy(family.model, inputs, 1, vrga=Guide(heads=HEADS))
        assert handle.regions[0].visual_heads == HEADS
        greedy(family.model, inputs, 1, vrga=Guide(heads=profile))
        assert handle.regions[0].visual_heads == profile.top()


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ([], ValueError, r"heads: wanted at least one \(layer, head\), got none"),
        ([(3, 0)], ValueError, r"with a layer of \[0, 1, 2\] and a head below 4, got \(3, 0\)"),
        ([(0, 4)], ValueError, r"with a layer of \[0, 1, 2\] and a head below 4, got \(0, 4\)"),
        ([(-1, 0)], ValueError, r"heads: wanted indices of at least 0, got \(-1, 0\)"),
        ([(0, 1), (0, 1)], ValueError, r"heads: wanted each \(layer, head\) once"),
        ([(0, 1, 2)], ValueError, r"heads: wanted \(layer, head\) pairs"),
        ([(0, 1.5)], TypeError, "heads: wanted whole numbers, got 1.5"),
        ([0, 1], TypeError, r"heads: wanted \(layer, head\) pairs, got 0"),
        ("top", TypeError, r"heads: wanted \(layer, head\) pairs, got 'top'"),
    ],
)
def test_heads_that_cannot_be_boosted(family, heads, error, message):
    with pytest.raises(error, match=message):
        vrga_ext.enable(family.model, heads=heads)
    assert_untouched(family.model)


def test_layers_that_are_not_known_before_the_first_prompt(family, monkeypatch):
    monkeypatch.setattr(f"{FACTS}.full_layers", lambda *arguments: frozenset())
    inputs = family.prompt(ROWS[0])
    last = inputs["input_ids"].shape[1] - 1
    with (
        vrga_ext.enable(family.model, question_end=last, heads=[(7, 0)]),
        pytest.raises(ValueError, match=r"heads: wanted .*layer of \(0, 1, 2\).* got \(7, 0\)"),
    ):
        greedy(family.model, inputs, 1)
    assert_untouched(family.model)


def test_profile_of_another_model(family, profile):
    llava = build("llava")
    message = "heads: wanted a profile of a model with model_type 'llava', got one with 'qwen2_5"
    with pytest.raises(ValueError, match=message):
        vrga_ext.enable(llava.model, heads=profile)
    assert_untouched(llava.model)
    family.model.config._name_or_path = "some/tuned"
    with pytest.warns(VRGAWarning, match="is of a model with name None, not 'some/tuned'"):
        vrga_ext.enable(family.model, heads=profile).disable()


def test_pairs_of_any_kind(family):
    for heads in ([[2, 3], [0, 1]], torch.tensor(HEADS), np.array(HEADS)):
        inputs = family.prompt(ROWS[0])
        last = inputs["input_ids"].shape[1] - 1
        with vrga_ext.enable(family.model, question_end=last, heads=heads) as handle:
            greedy(family.model, inputs, 1)
            assert handle.regions[0].visual_heads == HEADS
