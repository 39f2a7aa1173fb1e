"""What a handle tells, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import re
from dataclasses import replace

import pytest
import torch

import vrga_ext
from tests.adapter.checks import assert_untouched
from tests.adapter.families import LOOSE, ROWS, build, greedy
from tests.prompts.processors import processor


@pytest.fixture
def family():
    return build("qwen2_5_vl")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("gamma", "call disable(), then enable(model, gamma=...)"),
        ("gate", "call disable(), then enable(model, gate=...)"),
        ("config", "call disable(), then enable(model, config)"),
        ("enabled", "use `with handle.pause():`, or handle.disable()"),
        ("paused", "use `with handle.pause():`, or handle.disable()"),
        ("installed", "use `with handle.pause():`, or handle.disable()"),
        ("regions", "help(vrga_ext.VRGAHandle)"),
        ("question_ends", "help(vrga_ext.VRGAHandle)"),
    ],
)
def test_an_attribute_that_cannot_be_set_is_refused(family, name, instead):
    with vrga_ext.enable(family.model) as handle:
        before = dict(handle.__dict__), dict(handle._runtime.__dict__)
        with pytest.raises(AttributeError) as refusal:
            setattr(handle, name, 1.0)
        assert (handle.__dict__, handle._runtime.__dict__) == before
    message = str(refusal.value)
    assert message.startswith(f"handle.{name}: wanted one of question_end, region_hook")
    assert instead in message


def test_attributes_that_can_be_set_are_set(family):
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        handle.question_end = 20
        handle.region_hook = lambda sample, region: dataclasses.replace(
            region, boosted=region.image_positions[:1]
        )
        greedy(family.model, inputs, 1)
        assert handle.regions[0].question_end == 20
        assert len(handle.regions[0].boosted) == 1


def test_regions_say_what_is_missing(family):
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        none_yet = "regions: wanted a prompt that was read with VRGA, got none; call model.generate"
        with pytest.raises(IndexError, match=re.escape(none_yet)):
            handle.regions[0]
        assert handle.regions == []
        greedy(family.model, family.prompt(ROWS[0]), 1)
        assert len(handle.regions) == len(list(handle.regions)) == len(handle.regions[:2]) == 1
        assert handle.regions[-1] is handle.regions[0]
        with pytest.raises(IndexError, match=r"regions: wanted an index below 1, .* got 1"):
            handle.regions[1]
        with handle.pause():
            greedy(family.model, family.prompt(ROWS[0]), 1)
        with pytest.raises(IndexError, match=r"outside pause\(\)"):
            handle.regions[0]
        assert copy.deepcopy(handle.regions) == []


def test_capture_takes_what_vrga_was_enabled_with(family):
    ours = processor("chatml")
    inputs = family.prompt(ROWS[0])
    image = family.model.config.image_token_id
    with vrga_ext.enable(family.model, processor=ours, question_end=20, **LOOSE):
        for token in (image, [image]):
            with vrga_ext.capture(family.model, image_token_id=token) as recording:
                greedy(family.model, inputs, 1)
            assert recording.last.positions[0, 0] == 20
        for same in (ours, processor("chatml"), None):  # a second one, loaded anew
            for end in (20, torch.tensor(20), "auto"):
                with vrga_ext.capture(family.model, processor=same, question_end=end) as recording:
                    greedy(family.model, inputs, 2)
                assert recording.last.positions[0, 0] == 20


def test_capture_refuses_another_question(family):
    ours, other = processor("chatml"), processor("vicuna")
    with vrga_ext.enable(family.model, processor=ours, **LOOSE) as handle:
        refused = {
            "processor: wanted the one that VRGA is enabled with": {"processor": other},
            "question_end: wanted that of the handle, 'auto', or 'auto', got 3": {
                "question_end": 3
            },
            "image_token_id: wanted ids among [100, 101], which VRGA is enabled with, got [7]": {
                "image_token_id": 7
            },
        }
        for message, arguments in refused.items():
            refusal = pytest.raises(ValueError, match=re.escape(message))
            with refusal, vrga_ext.capture(family.model, **arguments):
                pass
        assert handle._runtime.capture is None
    refusal = pytest.raises(ValueError, match="pass it to enable")
    without_one = vrga_ext.enable(family.model, **LOOSE)
    with without_one, refusal, vrga_ext.capture(family.model, processor=ours):
        pass


ROW = ROWS[0]


def test_handle_is_not_entered_after_its_end(family):
    with vrga_ext.enable(family.model) as handle:
        pass
    with pytest.raises(ValueError, match="handle: wanted one that is enabled"), handle:
        pass
    assert_untouched(family.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "wanted a Region, got NoneType"),
        ({"visual_heads": ((99, 0),)}, r"got \(99, 0\)"),
        ({"visual_heads": ((0, 4),)}, r"a head below 4, got \(0, 4\)"),
        ({"boosted": [5]}, "wanted boosted as an int64 tensor, got list"),
        ({"boosted": torch.tensor([5.0])}, "wanted boosted as an int64 tensor, got torch.float32"),
        ({"boosted": torch.tensor([500])}, r"wanted boosted in \[0, \d+\), got \[500\]"),
    ],
)
def test_region_hook_that_returns_something_else(family, changes, message):
    inputs = family.prompt(ROW)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        handle.region_hook = lambda sample, region: changes and replace(region, **changes)
        with pytest.raises((TypeError, ValueError), match="region_hook: .*" + message):
            greedy(family.model, inputs, 2)
        handle.region_hook = None
        greedy(family.model, inputs, 2)
    assert_untouched(family.model)
