"""Boxes and masks in pixels to the image tokens of a capture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

import vrga_ext
from tests.adapter.families import build, greedy
from tests.geometry.families import CASES
from vrga_ext.analysis import relevant_tokens, token_levels
from vrga_ext.analysis.boxes import picture_tokens
from vrga_ext.selection import Span

# 28 x 28 pixels a token.
PROCESSOR = Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 280**2})
BOXES = [[(0, 0, 56, 56)], [(56, 0, 84, 56)]]
SIZES = [(112, 112), [(84, 56), (112, 112)]]


def captured(*rows, **kwargs):
    family = build("qwen2_5_vl")
    inputs = family.prompt(*rows)
    with vrga_ext.capture(family.model, question_end=inputs["input_ids"].shape[1] - 1) as recording:
        greedy(family.model, inputs, 2, **kwargs)
    return recording.last


@pytest.fixture(scope="module")
def capture():
    """Two samples: a 4 x 4 image, and a 2 x 3 and a 4 x 4 one."""
    return captured([5, (4, 4), 7, 8], [(2, 3), 9, (4, 4), 10, 11], num_beams=2)


def test_tokens_of_a_capture(capture):
    tokens = relevant_tokens(capture, BOXES, SIZES, processor=PROCESSOR)
    assert tokens.shape == (4, 22)
    assert tokens[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert tokens[2].nonzero().flatten().tolist() == [2, 5]
    assert torch.equal(tokens[::2], tokens[1::2])  # beams
    second = relevant_tokens(capture, [[], [(0, 0, 28, 28)]], SIZES, processor=PROCESSOR, image=1)
    assert second[2].nonzero().flatten().tolist() == [6]
    assert not second[0].any()


def test_masks_of_a_capture(capture):
    masks = [np.ones((112, 112)), np.ones((56, 84))]
    tokens = relevant_tokens(capture, image_sizes=SIZES, masks=masks, processor=PROCESSOR)
    assert tokens.sum(1).tolist() == [16, 16, 6, 6]
    one = captured([5, (4, 4), 7, 8], [5, 6, 7])
    masks = [torch.ones(112, 112), None]
    assert relevant_tokens(one, masks=masks, processor=PROCESSOR).sum(1).tolist() == [16, 0]


def test_a_prompt_without_a_region_needs_no_image():
    one = captured([5, (4, 4), 7, 8], [5, 6, 7])
    tokens = relevant_tokens(one, [BOXES[0], []], [(112, 112), []], processor=PROCESSOR)
    assert tokens.sum(1).tolist() == [4, 0]
    with pytest.raises(ValueError, match="image: wanted one of 0 of sample 1, got 0"):
        relevant_tokens(one, BOXES[:1] * 2, [(112, 112)] * 2, processor=PROCESSOR)


def test_levels_of_a_capture(capture):
    levels = token_levels(capture, SIZES, processor=PROCESSOR)
    assert levels[0].tolist() == [0] * 16 + [-1] * 6  # 22 tokens of the other sample
    assert levels[2].tolist() == [0] * 22


def test_tiles_of_a_picture_are_joined():
    """Four tiles and the whole picture, 3 x 3 tokens each, in runs of their own."""
    settings = {"max_image_size": {"longest_edge": 84}, "size": {"longest_edge": 168}}
    processor = replace(CASES["idefics3"], settings=settings).build()
    tile = (3, 3)
    one = captured([5, tile, 6, tile, 6, tile, 6, tile, 6, tile, 7, 8])
    assert len(one.images[0]) == 5
    box, size = [[(0, 0, 28, 28)]], [(168, 168)]
    tokens = relevant_tokens(one, box, size, processor=processor)
    assert tokens[0].nonzero().flatten().tolist() == [0, 36]  # and the token it covers most
    tokens = relevant_tokens(one, box, size, processor=processor, level=0)
    assert tokens[0].nonzero().flatten().tolist() == [36]
    levels = token_levels(one, size, processor=processor)
    assert levels[0].tolist() == [1] * 36 + [0] * 9


def test_which_runs_belong_to_which_picture():
    runs = [Span(3 * i, 3, 1, None) for i in range(4)]
    one, other = picture_tokens(runs, [(8, 8)] * 2)
    assert one.tolist() == [1, 2, 4, 5]
    assert other.tolist() == [7, 8, 10, 11]
    assert [len(own) for own in picture_tokens(runs, [(8, 8), (9, 9), (8, 9), (7, 7)])] == [2] * 4
    assert picture_tokens([], []) == []
    with pytest.raises(ValueError, match="got 1 for 0 runs"):
        picture_tokens([], [(8, 8)])
    for sizes in ([(8, 8)] * 3, [(8, 8), (9, 9)], [], [(8, 8)] * 5):
        with pytest.raises(ValueError, match="image_sizes: wanted one for each image"):
            picture_tokens(runs, sizes)


def test_tokens_of_a_capture_that_do_not_fit(capture):
    def tokens(boxes=None, sizes=None, **kwargs):
        return relevant_tokens(capture, boxes, sizes, processor=PROCESSOR, **kwargs)

    with pytest.raises(ValueError, match=r"boxes: wanted a list of .* got \(0, 0, 50, 50\)"):
        tokens([(0, 0, 50, 50)] * 2, SIZES)
    with pytest.raises(ValueError, match=r"image_sizes: wanted \(width, height\).*, got 112"):
        tokens(BOXES, (112, 112))
    with pytest.raises(ValueError, match=r"boxes: wanted .* in pixels of the image of 84 x 56"):
        tokens([BOXES[0], [(0.2, 0.1, 0.9, 0.8)]], SIZES)
    with pytest.raises(ValueError, match=r"image_sizes: wanted \(width, height\) of at least 1"):
        tokens(BOXES, [(112, 112), (30, 0)])
    with pytest.raises(ValueError, match=r"boxes: wanted one for each prompt of the batch \(2\)"):
        tokens(BOXES[:1], SIZES)
    with pytest.raises(ValueError, match="image_sizes: wanted one for each prompt"):
        tokens(BOXES, SIZES[:1])
    with pytest.raises(ValueError, match=r"wanted the first two, or masks, got boxes$"):
        tokens(BOXES)
    with pytest.raises(ValueError, match="image: wanted one of 1 of sample 0, got 1"):
        tokens(BOXES, SIZES, image=1)
    with pytest.raises(ValueError, match=r"mask: wanted \[height, width\], got \[4\]"):
        tokens(masks=[np.ones(4)] * 2)


@pytest.mark.filterwarnings("ignore:Qwen2VLImageProcessorPil")
def test_an_image_whose_tokens_have_no_known_place(capture):
    wrong = [(112, 84), SIZES[1]]  # 12 tokens
    with pytest.raises(ValueError, match=r"known places, got one of sample 0 with 16 tokens"):
        relevant_tokens(capture, BOXES, wrong, processor=PROCESSOR)
    with pytest.raises(ValueError, match="image_sizes has one size for each image"):
        relevant_tokens(capture, BOXES, [(112, 112), (84, 56)], processor=PROCESSOR)
