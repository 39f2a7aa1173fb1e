"""Guides: tokens and heads by hand, and schedules, in every way of generating."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StaticCache

import vrga_ext
from tests.adapter.explicit import explicit_greedy
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.geometry.families import CASES
from vrga_ext import Guide
from vrga_ext.demo.answers import held_out, load_demo, prepare
from vrga_ext.prompts.pictures import PictureReader, PromptPictures

NEW = 6
# What a static cache and torch.compile do is not every platform's: the same graph for all tokens.
close = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def qwen():
    return build("qwen2_5_vl")


def image_of(family, row):
    """Positions of the image tokens of a single row."""
    ids = family.prompt(row)["input_ids"][0]
    return torch.isin(ids, torch.tensor(family.image_tokens)).nonzero().flatten().tolist()


def test_a_guide_with_the_regions_tokens_equals_vrga(family):
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        expected = logits(greedy(family.model, inputs, NEW))
        region = handle.regions[0]
        guide = Guide(tokens=region.boosted, heads=region.visual_heads)
        found = logits(greedy(family.model, inputs, NEW, vrga=guide))
        assert torch.equal(handle.regions[0].boosted, region.boosted)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_tokens_are_taken_as_they_are(implementation):
    family = build("qwen2_5_vl", attn_implementation=implementation)
    inputs = family.prompt(*ROWS)
    padding = inputs["input_ids"].shape[1]
    positions = [
        [p + padding - family.prompt(row)["input_ids"].shape[1] for p in image_of(family, row)]
        for row in ROWS
    ]
    told = [Guide(tokens=own[:1], heads=[(1, 2), (2, 0)], suppress=0.5) for own in positions]
    config = vrga_ext.VRGAConfig(**LOOSE, suppress=0.5)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        ours = greedy(family.model, inputs, NEW, vrga=told)
        for region, own in zip(handle.regions, positions, strict=True):
            assert region.boosted.tolist() == region.focus.tolist() == own[:1]
            assert region.visual_heads == ((1, 2), (2, 0))
        regions = list(handle.regions)
    tokens = ours.sequences[:, -NEW:]
    explicit = explicit_greedy(family.model, inputs, tokens, regions, config)
    torch.testing.assert_close(logits(ours), logits(explicit), **close)


def test_gaze_heads_are_a_gamma_and_a_suppress(qwen):
    """exp(b) on the region and exp(-b) elsewhere, before all is renormalised."""
    inputs, b, heads = qwen.prompt(ROWS[0]), 1.5, ((0, 1), (2, 3))
    own = image_of(qwen, ROWS[0])
    guide = Guide(tokens=own[3:6], heads=heads, gamma=math.exp(b) - 1, suppress=math.exp(-b))
    assert guide.configured(vrga_ext.VRGAConfig()).head_gate[1:3] == pytest.approx(
        (math.exp(b), math.exp(-b))
    )
    with vrga_ext.enable(qwen.model, **LOOSE), vrga_ext.capture(qwen.model, rows="all") as seen:
        greedy(qwen.model, inputs, 3, vrga=guide)
    capture = seen.last.generated
    scores = capture.rows.log()  # up to a constant
    bias = torch.zeros_like(scores)
    others = [p for p in own if p not in own[3:6]]
    bias[..., own[3:6]], bias[..., others] = b, -b
    expected = torch.where(capture.gate[..., None], (scores + bias).softmax(-1), capture.rows)
    torch.testing.assert_close(capture.reweighted_rows(), expected, atol=1e-6, rtol=1e-5)
    gated = [tuple(pair) for pair in capture.gate[0, :, :, 0].nonzero().tolist()]
    assert gated == [(capture.layers.index(layer), head) for layer, head in heads]


def test_nothing_to_change_is_bit_identical(qwen):
    inputs, own = qwen.prompt(ROWS[0]), image_of(qwen, ROWS[0])
    plain = logits(greedy(qwen.model, inputs, NEW))
    guide = Guide(tokens=own[:4], gamma=0.0, suppress=1.0, schedule=[(3, None)])
    with vrga_ext.enable(qwen.model, **LOOSE):
        assert torch.equal(logits(greedy(qwen.model, inputs, NEW, vrga=guide)), plain)


# ---- schedules -----------------------------------------------------------------------------------


def scheduled_loop(model, inputs, count, vrga, change=None):
    """A greedy loop; ``change(step)`` may swap the plan's flags before a decode step."""
    scores, step = [], dict(inputs, vrga=vrga)
    with torch.no_grad():
        cache = None
        for index in range(count):
            if index and change is not None:
                change(cache, index)
            output = model(**step, use_cache=True)
            cache = output[CACHE]
            scores.append(output.logits[:, -1])
            step = {"input_ids": scores[-1].argmax(-1, keepdim=True), CACHE: cache}
    return torch.stack(scores)


def forced_flags(positions_of):
    """A change of the flags by hand: image flags, and the tokens of a step."""

    def change(cache, step):
        state = cache._vrga_state
        positions = positions_of(step)
        for plan in state.plan.layers.values():
            flags = state.image_mask.to(torch.uint8) if positions is not None else 0
            plan.flags.copy_(torch.as_tensor(flags))
            if positions is not None:
                plan.flags[:, positions] |= 2

    return change


def test_a_schedule_equals_a_loop_that_changes_the_region(family):
    inputs, own = family.prompt(ROWS[0]), image_of(family, ROWS[0])
    first, second = own[:3], own[4:8]
    shared = {"heads": ((1, 0), (1, 3)), "suppress": 0.5}
    guide = Guide(tokens=first, **shared, schedule=[(2, Guide(tokens=second)), (4, None)])
    timeline = [first, first, second, second, None, None]
    with vrga_ext.enable(family.model, **LOOSE):
        hand = forced_flags(lambda step: timeline[step])
        loop = scheduled_loop(family.model, inputs, NEW, Guide(tokens=first, **shared), hand)
        ours = greedy(family.model, inputs, NEW, vrga=guide)
        manual = scheduled_loop(family.model, inputs, NEW, guide)
    torch.testing.assert_close(logits(ours), loop, **close)
    torch.testing.assert_close(manual, loop, **close)
    with vrga_ext.enable(family.model, **LOOSE):
        constant = logits(greedy(family.model, inputs, NEW, vrga=replace(guide, schedule=())))
    assert (constant - loop)[2:].abs().amax() > 1e-3


def test_between_two_tokens(qwen):
    """The region holds from the start token on, until the end token has been read."""
    inputs, own = qwen.prompt(ROWS[0]), image_of(qwen, ROWS[0])
    shared = {"tokens": own[:3], "heads": ((1, 0), (1, 3))}
    with vrga_ext.enable(qwen.model, **LOOSE):
        plain = greedy(qwen.model, inputs, NEW, vrga=False)
        answer = plain.sequences[0, -NEW:].tolist()
        start, end = answer[1], next(t for t in answer[2:] if t != answer[1])
        guide = Guide(**shared, between=(start, end))
        loop, inside, timeline = [], False, [None]
        step = dict(inputs, vrga=Guide(**shared))
        cache = None
        with torch.no_grad():
            for index in range(NEW):
                if index:
                    now = own[:3] if inside else None
                    forced_flags({index: now}.get)(cache, index)
                output = qwen.model(**step, use_cache=True)
                cache = output[CACHE]
                loop.append(output.logits[:, -1])
                token = loop[-1].argmax(-1, keepdim=True)
                inside = (inside or int(token) == start) and int(token) != end
                timeline.append(inside)
                step = {"input_ids": token, CACHE: cache}
        ours = greedy(qwen.model, inputs, NEW, vrga=guide)
    torch.testing.assert_close(logits(ours), torch.stack(loop), **close)
    assert True in timeline
    assert timeline[1:].count(False)


def test_a_prompt_that_opens_the_guided_part(qwen):
    row = [*ROWS[0][:-1], 50]
    inputs, own = qwen.prompt(row), image_of(qwen, row)
    with vrga_ext.enable(qwen.model, **LOOSE, question_end=len(inputs["input_ids"][0]) - 2):
        always = logits(greedy(qwen.model, inputs, NEW, vrga=Guide(tokens=own[:3])))
        opened = Guide(tokens=own[:3], between=(50, 127))
        shut = Guide(tokens=own[:3], between=(127, 50))
        plain = logits(greedy(qwen.model, inputs, NEW, vrga=False))
        torch.testing.assert_close(logits(greedy(qwen.model, inputs, NEW, vrga=opened)), always)
        torch.testing.assert_close(logits(greedy(qwen.model, inputs, NEW, vrga=shut)), plain)


WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "returned": {"do_sample": True, "num_return_sequences": 2, "top_k": 1},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("timed", ["schedule", "between"])
def test_ways_of_generating(qwen, way, timed):
    """Every way chooses the tokens that the greedy loop with the same guide would choose."""
    row = ROWS[0] if way != "prompt lookup" else [5, 6, (4, 4), *[7, 8, 9] * 3]
    inputs, own = qwen.prompt(row), image_of(qwen, row)
    shared = {"tokens": own[:3], "heads": ((1, 0), (1, 3)), "gamma": 20.0}
    with vrga_ext.enable(qwen.model, **LOOSE):
        answer = greedy(qwen.model, inputs, NEW, vrga=Guide(**shared)).sequences[0, -NEW:].tolist()
        if timed == "schedule":
            guide = Guide(**shared, schedule=[(2, Guide(tokens=own[5:9])), (4, None)])
        else:
            guide = Guide(
                **shared, between=(answer[0], answer[2] if answer[2] != answer[0] else 127)
            )
        output = qwen.model.generate(
            **inputs,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            **{"do_sample": False} | WAYS[way],
            vrga=guide,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=way == "beams",
        )
        if way == "beams":  # each hypothesis as one forced answer
            for sequence in output.sequences:
                step_scores = replay(qwen.model, inputs, guide, sequence[-NEW:])
                total = step_scores.log_softmax(-1).gather(1, sequence[-NEW:, None]).sum()
                scores = output.sequences_scores * NEW
                assert (scores - total).abs().min() < 1e-3
            return
        expected = greedy(qwen.model, inputs, NEW, vrga=guide)
        for sequence in output.sequences:
            assert torch.equal(sequence[-NEW:], expected.sequences[0, -NEW:])
        if way == "static":
            torch.testing.assert_close(logits(output), logits(expected), **close)


def replay(model, inputs, guide, tokens):
    """Logits [steps, vocabulary] of a loop that writes given tokens."""
    step, found = dict(inputs, vrga=guide), []
    with torch.no_grad():
        for token in tokens:
            output = model(**step, use_cache=True)
            found.append(output.logits[0, -1])
            step = {"input_ids": token[None, None], CACHE: output[CACHE]}
    return torch.stack(found)


def test_samples_with_and_without_a_schedule(qwen):
    inputs = qwen.prompt(ROWS[0], ROWS[0], ROWS[0])
    own = image_of(qwen, ROWS[0])
    timed = Guide(tokens=own[:3], heads=((1, 0),), schedule=[(2, None)])
    told = [timed, None, {"gamma": 1.0, "guide": Guide(tokens=own[2:4])}]
    with vrga_ext.enable(qwen.model, **LOOSE):
        together = logits(greedy(qwen.model, inputs, NEW, vrga=told))
        each = [logits(greedy(qwen.model, inputs, NEW, vrga=own)) for own in told]
    for sample, expected in enumerate(each):
        torch.testing.assert_close(together[:, sample], expected[:, sample], **close)


def test_what_is_captured_under_a_schedule(qwen):
    inputs, own = qwen.prompt(ROWS[0]), image_of(qwen, ROWS[0])
    guide = Guide(
        tokens=own[:3], heads=((1, 0),), schedule=[(2, Guide(tokens=own[5:6])), (4, None)]
    )
    with vrga_ext.enable(qwen.model, **LOOSE):
        expected = logits(greedy(qwen.model, inputs, NEW, vrga=guide))
        with vrga_ext.capture(qwen.model) as seen:
            captured = logits(greedy(qwen.model, inputs, NEW, vrga=guide))
    assert torch.equal(captured, expected)
    capture = seen.last.generated
    boosted = [capture.boosted[0, step].nonzero().flatten().tolist() for step in range(NEW - 1)]
    assert boosted == [[0, 1, 2], [5], [5], [], []]  # written tokens 1 to 5
    gates = capture.gate[0].flatten(0, 1).sum(0).tolist()
    assert gates == [1, 1, 1, 0, 0]
    assert not capture.image_ratio.isnan().any()
    assert (capture.image_ratio > 0).all()


def test_a_compiled_step_follows_any_schedule(qwen):
    """One graph for every token and for the next schedule."""
    own = image_of(qwen, ROWS[0])
    inputs = qwen.prompt(ROWS[0])
    torch._dynamo.reset()
    compiled, graphs = torch.compile(qwen.model, backend="eager", dynamic=False), []

    def guides():
        shared = {"heads": ((1, 0), (1, 3))}
        yield Guide(tokens=own[:3], **shared, schedule=[(2, Guide(tokens=own[4:8])), (4, None)])
        yield Guide(tokens=own[2:4], **shared, schedule=[(1, None), (3, Guide(tokens=own[9:12]))])

    with vrga_ext.enable(qwen.model, **LOOSE):
        for guide in guides():
            expected = scheduled_loop(qwen.model, inputs, NEW, guide)
            cache = StaticCache(config=qwen.model.config, max_cache_len=64)
            scores, step = [], {**inputs, "vrga": guide, CACHE: cache}
            with torch.no_grad():
                for index in range(NEW):
                    model = compiled if index else qwen.model
                    scores.append(model(**step, use_cache=True).logits[:, -1])
                    step = {"input_ids": scores[-1].argmax(-1, keepdim=True), CACHE: cache}
                    if index:
                        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            torch.testing.assert_close(torch.stack(scores), expected, **close)
    assert graphs[0] == graphs[-1], graphs


# ---- places in pixels ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    model, processor = load_demo()
    samples = held_out(2, seed=3)
    return model, processor, prepare(processor, samples, steps=0), samples[0].image.size


def test_boxes_points_and_masks_of_a_picture(demo):
    model, processor, inputs, size = demo
    box = (28, 56, 84, 112)  # 2 x 2 of 6 x 6 tokens of 28 pixels
    mask = np.zeros(size[::-1], bool)
    mask[56:112, 28:84] = True
    expected = [13, 14, 19, 20]
    kinds = {
        "boxes": {"boxes": [box]},
        "points": {"points": [(30, 60), (60, 60), (30, 90), (83, 111)]},
        "masks": {"masks": mask},
    }
    with vrga_ext.enable(model, processor=processor) as handle:
        for name, places in kinds.items():
            guide = Guide(**places, image_sizes=size)
            model.generate(**inputs, max_new_tokens=2, vrga=[guide, False])
            region = handle.regions[0]
            found = torch.searchsorted(region.image_positions, region.boosted).tolist()
            assert found == expected, name
            assert not len(handle.regions[1].boosted)


@given(data=st.data(), share=st.sampled_from([0.2, 0.5, 1.0]))
@settings(max_examples=12, derandomize=True, deadline=None)
def test_each_token_lies_in_the_box_or_is_the_best_one(demo, data, share):
    model, processor, inputs, (width, height) = demo
    x0, y0 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x1, y1 = data.draw(st.integers(x0 + 2, width)), data.draw(st.integers(y0 + 1, height))
    guide = Guide(boxes=[(x0, y0, x1, y1)], image_sizes=(width, height), min_coverage=share)
    with vrga_ext.enable(model, processor=processor) as handle:
        model.generate(**inputs, max_new_tokens=1, vrga=guide)
        regions = list(handle.regions)
    cells = torch.tensor([(28 * (i % 6), 28 * (i // 6)) for i in range(36)])
    low = torch.maximum(cells, torch.tensor([x0, y0]))
    high = torch.minimum(cells + 28, torch.tensor([x1, y1]))
    covered = (high - low).clamp(min=0).prod(1) / 28**2
    wanted = covered >= share if (covered >= share).any() else covered == covered.max()
    for region in regions:
        assert torch.equal(region.boosted, region.image_positions[wanted])


def test_a_picture_in_tiles():
    """A box in the last tile is of tokens there and of the thumbnail, which comes last."""
    reader = PictureReader(CASES["idefics3"].build(), None)
    tiles = PromptPictures(reader, torch.arange(10, 10 + 7 * 16), None)  # 3 x 2 tiles of 16 tokens
    guide = Guide(boxes=[(150, 93, 160, 100)], image_sizes=(160, 100))
    assert (tiles.tokens_of(guide) - 10).tolist() == [5 * 16 + 15, 6 * 16 + 15]
    with pytest.raises(ValueError, match="there is no way to divide 15 image tokens"):
        PromptPictures(reader, torch.arange(15), None).tokens_of(guide)


def test_several_pictures_of_different_sizes():
    """The second picture's box is of its own tokens, however many the first one has."""
    reader = PictureReader(CASES["idefics3"].build(), None)
    positions = torch.tensor([*range(3, 3 + 112), *range(200, 200 + 7 * 16)])
    pictures = PromptPictures(reader, positions, None)
    sizes = [(160, 100), (100, 160)]
    second = Guide(boxes=[[], [(0, 0, 10, 7)]], image_sizes=sizes)
    assert pictures.tokens_of(second).tolist() == [200, 200 + 6 * 16]
    with pytest.raises(ValueError, match="image_sizes: wanted pictures whose tokens can be placed"):
        pictures.tokens_of(Guide(boxes=[(0, 0, 9, 9)], image_sizes=(160, 100)))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Guide(boxes=[(0, 0, 9, 9)], image_sizes=(50, 900)), "no way to divide 36 image tokens"),
        (Guide(boxes=[[(0, 0, 9, 9)], []], image_sizes=[(168, 168)] * 2), "1 pictures, got 2"),
    ],
)
def test_pictures_that_are_not_the_prompts(demo, guide, message):
    model, processor, inputs, _ = demo
    with vrga_ext.enable(model, processor=processor), warnings.catch_warnings():
        warnings.simplefilter("ignore", vrga_ext.VRGAWarning)
        call = partial(model.generate, **inputs, max_new_tokens=1, vrga=guide)
        with pytest.raises(ValueError, match=message):
            call()


def test_places_without_a_processor_are_refused(demo):
    model, _, inputs, size = demo
    guide = Guide(boxes=[(0, 0, 9, 9)], image_sizes=size)
    with (
        vrga_ext.enable(model),
        pytest.raises(ValueError, match=r"wanted a processor .*pass processor= to enable"),
    ):
        model.generate(**inputs, max_new_tokens=1, vrga=guide)
