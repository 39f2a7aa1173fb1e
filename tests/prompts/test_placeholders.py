"""Which tokens stand for the image, in models whose configuration names none."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import DynamicCache

import vrga_ext
from tests.adapter import unlisted
from tests.adapter.checks import assert_untouched
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.families.base import IMAGE, VIDEO
from vrga_ext.prompts.placeholders import Placeholders, find_placeholders

NEW = 4


class Tokenizer:
    """Knows the texts of tokens, and no attributes of theirs."""

    unk_token_id = 3

    def __init__(self, **ids: int) -> None:
        self._ids = {f"<{name}>": token for name, token in ids.items()}

    def convert_tokens_to_ids(self, text: str) -> int:
        return self._ids.get(text, self.unk_token_id)


def knows(**tokens: Any) -> Any:
    """A processor with these attributes."""
    return SimpleNamespace(tokenizer=Tokenizer(image=IMAGE, video=VIDEO), **tokens)


def blip(kind: str, **config: Any) -> Any:
    return functools.partial(unlisted.blip, kind, **config)


# ---- models --------------------------------------------------------------------------------------

PROCESSOR = {"processor": knows(image_token_id=IMAGE)}
VIDEO_TEXT = {"processor": SimpleNamespace(tokenizer=Tokenizer(video=IMAGE), video_token="<video>")}


@pytest.mark.parametrize(
    ("builder", "known"),
    [
        pytest.param(unlisted.kosmos2, {}, id="kosmos2"),
        pytest.param(unlisted.kosmos2, PROCESSOR, id="kosmos2, processor"),
        pytest.param(unlisted.kosmos2_5, {}, id="kosmos2_5"),
        pytest.param(unlisted.kosmos2_5, {"processor": knows(image_token_id=1)}, id="begin token"),
        pytest.param(unlisted.kosmos2_5, {"image_token_id": 1}, id="begin token given"),
        pytest.param(unlisted.phi4_multimodal, {}, id="phi4_multimodal"),
        pytest.param(blip("InstructBlipVideo", video_token_index=IMAGE), {}, id="video alone"),
        pytest.param(blip("Blip2", image_token_index=IMAGE), {}, id="blip2"),
        pytest.param(blip("InstructBlip", image_token_index=IMAGE), {}, id="instructblip"),
    ],
)
@pytest.mark.parametrize("way", ["generate", "loop"])
def test_image_is_where_the_model_puts_features(builder, known, way):
    model, inputs = unlisted.build(builder)
    told = inputs.get("image_embeds_position_mask", inputs["input_ids"] == IMAGE)
    expected = (told == 1)[0].nonzero().flatten()
    # Some models want pixels in every call; their language model goes on without.
    writer = getattr(model, "text_model", getattr(model, "language_model", model))

    def run():
        if way == "generate":
            return logits(greedy(model, copy.deepcopy(inputs), NEW))
        with torch.no_grad():
            cache = DynamicCache(config=model.config.get_text_config())
            steps = [model(**copy.deepcopy(inputs), use_cache=True, **{CACHE: cache}).logits[:, -1]]
            for column in range(told.shape[1], told.shape[1] + NEW - 1):
                step = {"input_ids": steps[-1].argmax(-1, keepdim=True), "use_cache": True}
                step["attention_mask"] = torch.ones(1, column + 1, dtype=torch.long)
                steps.append(writer(**step, **{CACHE: cache}).logits[:, -1])
        return torch.stack(steps)

    plain = run()
    with vrga_ext.enable(model, gamma=0.0, question_end=len(told[0]) - 1, **known) as handle:
        zero = run()
        assert handle.notices == ()
    (region,) = handle.regions
    with vrga_ext.enable(model, **LOOSE, question_end=len(told[0]) - 1, **known):
        boosted = run()
    assert torch.equal(region.image_positions, expected)
    assert [span.grid for span in region.images] == [None] * len(region.images)
    assert torch.equal(zero, plain)
    assert torch.equal(boosted[0], plain[0])
    assert not torch.allclose(boosted[1:], plain[1:], atol=1e-3)


def test_prompt_without_an_image_of_a_model_that_is_told():
    model, inputs = unlisted.build(unlisted.kosmos2_5)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with vrga_ext.enable(model) as handle:
        greedy(model, text, 1)
    assert handle.notices == ("VRGA is not applied: the prompt has no image token",)


@pytest.mark.parametrize(
    ("builder", "field", "known"),
    [
        (blip("Blip2"), "image_token_id", PROCESSOR),
        (blip("InstructBlip"), "image_token_id", {"image_token_id": IMAGE}),
        (unlisted.minicpmv4_7, "image_token_id", PROCESSOR),
        (unlisted.minicpmv4_7, "image_token_id", {"processor": knows(image_token="<image>")}),
        (unlisted.minicpmv4_7, "image_token_id", {"image_token_id": [IMAGE, VIDEO]}),
        (blip("InstructBlipVideo"), "video_token_id", VIDEO_TEXT),
        (blip("InstructBlipVideo"), "video_token_id", {"image_token_id": IMAGE}),
    ],
)
def test_processor_or_caller_names_what_the_configuration_does_not(builder, field, known):
    """It is refused without; once the field is filled, too, the model finds its image there."""
    model, inputs = unlisted.build(builder)
    message = r"names an image token .* pass the model's processor= or image_token_id="
    with pytest.raises(ValueError, match=message):
        vrga_ext.enable(model)
    assert_untouched(model)
    with vrga_ext.enable(model, **known) as handle:
        unset = [f"model.config.{field} is None"] * (field == "image_token_id")
        assert [notice.split(",")[0] for notice in handle.notices] == unset
        setattr(model.config, field, IMAGE)
        greedy(model, copy.deepcopy(inputs), 1)
    expected = (inputs["input_ids"] == IMAGE)[0].nonzero().flatten()
    assert torch.equal(handle.regions[0].image_positions, expected)
    setattr(model.config, field, None)
    with vrga_ext.capture(model, **known) as recording:
        setattr(model.config, field, IMAGE)
        greedy(model, copy.deepcopy(inputs), 1)
    assert torch.equal(recording.last.image_positions[0], expected)


def test_some_of_the_tokens_of_the_configuration():
    """Images alone, of a model that has videos, too."""
    family = build("qwen2_5_vl")
    assert find_placeholders(family.model) == Placeholders((IMAGE, VIDEO), (VIDEO,))
    assert find_placeholders(family.model, image_token_id=IMAGE) == Placeholders((IMAGE,))
    with vrga_ext.enable(family.model, image_token_id=VIDEO) as handle:
        greedy(family.model, family.prompt(ROWS[0]), 1)
    assert handle.notices == ("VRGA is not applied: the prompt has no image token",)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("<image>", TypeError),
        (b"ab", TypeError),
        (1.0, TypeError),
        (True, TypeError),
        ([5, None], TypeError),
        ([5, False], TypeError),
        ([[5]], TypeError),
        (torch.tensor([1.0]), TypeError),
        ([], ValueError),
        (-1, ValueError),
        (128, ValueError),
        ([5, 128], ValueError),
    ],
    ids=repr,
)
def test_ids_that_are_none(given, error):
    model, _ = unlisted.build(blip("Blip2"))
    for context in (vrga_ext.enable, vrga_ext.capture):
        with (
            pytest.raises(error, match="image_token_id: wanted"),
            context(model, image_token_id=given),
        ):
            pass
    assert_untouched(model)


@pytest.mark.parametrize(
    "given", [IMAGE, [IMAGE], (IMAGE, IMAGE), np.int64(IMAGE), np.array([IMAGE]), {IMAGE}]
)
def test_ids_of_other_types(given):
    model, _ = unlisted.build(blip("Blip2"))
    for image_token_id in (given, torch.tensor(given) if not isinstance(given, set) else given):
        assert find_placeholders(model, image_token_id=image_token_id).ids == (IMAGE,)


def test_ids_that_contradict_the_configuration():
    model = build("llava").model
    with pytest.raises(ValueError, match=rf"wanted ids among \[{IMAGE}\], .* got \[5\]"):
        vrga_ext.enable(model, image_token_id=5)
    with pytest.raises(ValueError, match=rf"wanted ids among \[{IMAGE}\]"):
        vrga_ext.enable(model, image_token_id=[IMAGE, 5])
    assert_untouched(model)


def test_id_is_of_enable_where_it_is_enabled():
    model, _ = unlisted.build(blip("Blip2", image_token_index=IMAGE))
    with (
        vrga_ext.enable(model),
        pytest.raises(ValueError, match=r"image_token_id: .* pass it to enable\(\)"),
        vrga_ext.capture(model, image_token_id=IMAGE + 1),
    ):
        pass


@pytest.mark.parametrize(
    ("processor", "ids"),
    [
        (knows(image_token_id=5), (5,)),
        (knows(image_token="<image>", video_token="<video>"), (IMAGE, VIDEO)),
        (knows(image_token=AddedToken("<image>"), video_token_id=7), (IMAGE, 7)),
        (SimpleNamespace(tokenizer=SimpleNamespace(image_token_id=5)), (5,)),
        (SimpleNamespace(image_token_id=5), (5,)),
        (knows(image_token_id=None, image_token="<image>"), (IMAGE,)),
    ],
)
def test_what_processors_know(processor, ids):
    model, _ = unlisted.build(blip("Blip2"))
    assert find_placeholders(model, processor).ids == ids


def test_processors_that_do_not_know_or_do_not_fit():
    model, _ = unlisted.build(blip("Blip2"))
    for processor in (knows(), knows(image_token="<picture>")):  # the unknown token is no image
        with pytest.raises(
            ValueError, match="and SimpleNamespace names none; pass image_token_id="
        ):
            vrga_ext.enable(model, processor=processor)
    with pytest.raises(ValueError, match=r"processor: wanted .* vocabulary of 128, got 200"):
        vrga_ext.enable(model, processor=knows(image_token_id=200))
    assert find_placeholders(model, knows(image_token_id=200), IMAGE).ids == (IMAGE,)
    assert_untouched(model)


def test_model_that_sees_the_image_in_another_way():
    """Before the prompt, or in cross-attention, though the processor has an image token."""
    git = unlisted.git()
    with pytest.raises(ValueError, match=r"no get_placeholder_mask.*pass image_token_id=100"):
        vrga_ext.enable(git, processor=knows(image_token_id=IMAGE))
    assert "generate" not in git.__dict__
    idefics = unlisted.idefics()
    for known in ({"processor": knows(image_token_id=IMAGE)}, {"image_token_id": IMAGE}):
        with pytest.raises(ValueError, match=r"no get_placeholder_mask|through cross-attention"):
            vrga_ext.enable(idefics, **known)
    assert "generate" not in idefics.__dict__
