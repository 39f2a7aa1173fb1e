"""Boxes and masks in pixels to image tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vrga_ext
from tests.adapter.families import build, greedy
from vrga_ext.analysis import box_tokens, mask_tokens, relevant_tokens

GRID, SIZE = (3, 4), (50, 31)  # cells of 12.5 x 10.33 pixels


def counted(box: tuple[int, int, int, int]) -> torch.Tensor:
    """Share of each cell that a box of whole pixels covers, on a raster of 1/12 pixel."""
    fine = torch.zeros(31 * 12, 50 * 12)
    left, top, right, bottom = (12 * edge for edge in box)
    fine[top:bottom, left:right] = 1
    return torch.nn.functional.avg_pool2d(fine[None], (124, 150))[0]


@pytest.mark.parametrize("min_coverage", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    "box", [(0, 0, 50, 31), (0, 0, 25, 11), (7, 3, 30, 26), (20, 0, 50, 9), (13, 11, 37, 31)]
)
def test_coverage_of_cells(box, min_coverage):
    wanted = counted(box) >= min_coverage
    if not wanted.any():
        wanted = counted(box) > counted(box).max() - 1e-6
    assert torch.equal(box_tokens([box], SIZE, GRID, min_coverage=min_coverage), wanted)
    mask = torch.zeros(31, 50, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    assert torch.equal(mask_tokens(mask, GRID, min_coverage=min_coverage), wanted)
    assert torch.equal(mask_tokens(mask.numpy(), GRID, min_coverage=min_coverage), wanted)


def test_a_small_box_gets_the_cell_it_covers_most():
    assert box_tokens([(24, 14, 30, 16)], SIZE, GRID).nonzero().tolist() == [[1, 2]]
    both = box_tokens([(24, 14, 30, 16), (0, 0, 1, 1)], SIZE, GRID)
    assert both.nonzero().tolist() == [[0, 0], [1, 2]]
    assert box_tokens([(-5, -5, 2, 2)], SIZE, GRID).nonzero().tolist() == [[0, 0]]


def test_a_box_that_grazes_the_image_or_a_cell_gets_no_cell_it_does_not_touch():
    edge = box_tokens([(639.9999999999999, 100, 700, 200)], (640, 480), (4, 5))
    assert edge.nonzero().tolist() == [[1, 4]]
    small = box_tokens([(10, 10, 10.001, 10.001)], (4000, 3000), (2, 2))
    assert small.nonzero().tolist() == [[0, 0]]


def test_a_picture_is_a_mask():
    pixels = np.zeros((31, 50), dtype=np.uint8)
    pixels[:11, :25] = 255
    picture = Image.fromarray(pixels)
    for mask in (picture, picture.convert("1"), torch.tensor(pixels).bfloat16()):
        assert torch.equal(mask_tokens(mask, GRID), mask_tokens(pixels, GRID))


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 4, 9), (60, 3, 70, 9)])
def test_a_box_without_an_area_is_refused(box):
    with pytest.raises(ValueError, match=r"wanted \(left, top, right, bottom\) with an area"):
        box_tokens([box], SIZE, GRID)


@pytest.mark.parametrize(
    "boxes",
    [
        [(0.1, 0.2, 0.5, 0.6)],
        [(0.0, 0.0, 1.0, 1.0)],
        [(0, 0, 1, 1)],
        [(0, 0, 1, 1), (0.1, 0.2, 0.5, 0.6)],
        [(24, 14, 30, 16), (0.1, 0.2, 0.5, 0.6)],
        np.array([[0.1, 0.2, 0.5, 0.6]], dtype=np.float32),
        torch.tensor([[0.1, 0.2, 0.5, 0.6]]),
    ],
)
def test_boxes_in_shares_of_the_image_are_refused(boxes):
    with pytest.raises(
        ValueError,
        match=r"boxes: wanted \(left, top, right, bottom\) in pixels of the image of 50 x 31, got "
        r"\(0.*\), which are shares of its sides: multiply them by width and height",
    ):
        box_tokens(boxes, SIZE, GRID)


def test_boxes_in_pixels_near_the_corner_are_taken():
    """A part of the first pixel is none, but what reaches into the second one is."""
    for box in ((0, 0, 1, 2), (0.5, 0.5, 1.5, 1.5), (0, 0, 1.001, 1), (-0.5, 0, 0.5, 1)):
        assert box_tokens([box], SIZE, GRID).nonzero().tolist() == [[0, 0]]
    assert box_tokens([(0, 0, 0.5, 1)], (1, 1), (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, True, "9", None, 1j, 10**400, [9]])
def test_boxes_of_something_else_than_finite_numbers_are_refused(side, value):
    box = [2, 3, 30, 26]
    box[side] = value
    with pytest.raises(ValueError, match=r"boxes: wanted .*left, top, right, bottom"):
        box_tokens([box], SIZE, GRID)
    with pytest.raises(ValueError, match=r"boxes: wanted .*left, top, right, bottom"):
        box_tokens([(0, 0, 9, 9), box], SIZE, GRID)


@given(st.lists(st.floats() | st.integers(-99, 99) | st.sampled_from([0, 1, 0.5]), max_size=5))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_box_has_a_token_or_is_refused(box):
    try:
        chosen = box_tokens([box], SIZE, GRID)
    except ValueError as error:
        assert str(error).startswith("boxes: wanted ")  # noqa: PT017
        return
    left, top, right, bottom = box
    assert chosen.any()
    assert left < right
    assert top < bottom
    assert max(right, bottom) > 1 or min(left, top) < 0


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="min_coverage"):
        box_tokens([(0, 0, 9, 9)], SIZE, GRID, min_coverage=0)
    with pytest.raises(ValueError, match="at least one pixel"):
        mask_tokens(torch.zeros(4, 4), GRID)
    with pytest.raises(ValueError, match=r"wanted \[height, width\]"):
        mask_tokens(torch.ones(4), GRID)
    with pytest.raises(ValueError, match=r"mask: wanted \[height, width\], got \[4, 4, 3\]"):
        mask_tokens(Image.new("RGB", (4, 4)), GRID)
    for boxes in ((10, 10, 50, 20), [(1, 2, 3)], [(1, 2, 3, "4")], 5):
        with pytest.raises(
            ValueError, match=r"boxes: wanted a list of \(left, top, right, bottom\)"
        ):
            box_tokens(boxes, SIZE, GRID)
    for size in ((0, 31), (50, -31), (50, np.inf), (np.nan, 31), (True, 31)):
        with pytest.raises(ValueError, match=r"image_size: wanted \(width, height\)"):
            box_tokens([(0, 0, 9, 9)], size, GRID)
    for size in (640, (640,), None):
        with pytest.raises(ValueError, match=r"image_size: wanted \(width, height\), got"):
            box_tokens([(0, 0, 9, 9)], size, GRID)
    for grid in ((0, 5), (5, -1), (2.0, 3.0), 4):
        with pytest.raises(ValueError, match=r"grid: wanted \(rows, columns\)"):
            box_tokens([(0, 0, 9, 9)], SIZE, grid)
        with pytest.raises(ValueError, match=r"grid: wanted \(rows, columns\)"):
            mask_tokens(torch.ones(4, 4), grid)


@pytest.fixture(scope="module")
def capture():
    """Two samples: a 4 x 4 image, and a 2 x 3 and a 4 x 4 one."""
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, (4, 4), 7, 8], [(2, 3), 9, (4, 4), 10, 11])
    with vrga_ext.capture(family.model, question_end=inputs["input_ids"].shape[1] - 1) as recording:
        greedy(family.model, inputs, 2, num_beams=2)
    return recording.last


def test_tokens_of_a_capture(capture):
    boxes, sizes = [[(0, 0, 50, 50)], [(20, 0, 40, 20)]], [(100, 100), (30, 20)]
    tokens = relevant_tokens(capture, boxes, sizes)
    assert tokens.shape == (4, 22)
    assert tokens[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert tokens[2].nonzero().flatten().tolist() == [2, 5]
    assert torch.equal(tokens[::2], tokens[1::2])  # beams
    masks = [torch.ones(8, 8), torch.ones(5, 5)]
    assert relevant_tokens(capture, masks=masks).sum(1).tolist() == [16, 16, 6, 6]


def test_a_row_without_a_region_needs_no_image():
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, (4, 4), 7, 8], [5, 6, 7])
    with vrga_ext.capture(family.model, question_end=inputs["input_ids"].shape[1] - 1) as recording:
        greedy(family.model, inputs, 2)
    boxes, sizes = [[(0, 0, 50, 50)], []], [(100, 100), (100, 100)]
    tokens = relevant_tokens(recording.last, boxes, sizes)
    assert tokens.sum(1).tolist() == [4, 0]
    masked = relevant_tokens(recording.last, masks=[torch.ones(8, 8), None])
    assert masked.sum(1).tolist() == [16, 0]
    with pytest.raises(ValueError, match="image: wanted one of 0 of sample 1, got 0"):
        relevant_tokens(recording.last, boxes[:1] * 2, sizes)


def test_tokens_of_a_capture_that_do_not_fit(capture):
    boxes, sizes = [[(0, 0, 50, 50)], [(20, 0, 40, 20)]], [(100, 100), (30, 20)]
    with pytest.raises(ValueError, match=r"boxes: wanted a list of .* got \(0, 0, 50, 50\)"):
        relevant_tokens(capture, [(0, 0, 50, 50)] * 2, sizes)
    with pytest.raises(ValueError, match=r"image_sizes: wanted \(width, height\), got 100"):
        relevant_tokens(capture, boxes, (100, 100))
    with pytest.raises(ValueError, match=r"boxes: wanted .* in pixels of the image of 30 x 20"):
        relevant_tokens(capture, [boxes[0], [(0.2, 0.1, 0.9, 0.8)]], sizes)
    with pytest.raises(ValueError, match=r"image_sizes: wanted \(width, height\) above 0"):
        relevant_tokens(capture, boxes, [(100, 100), (30, 0)])
    with pytest.raises(ValueError, match=r"boxes: wanted one for each prompt of the batch \(2\)"):
        relevant_tokens(capture, boxes[:1], sizes)
    with pytest.raises(ValueError, match="image_sizes: wanted one for each prompt"):
        relevant_tokens(capture, boxes, sizes[:1])
    with pytest.raises(ValueError, match=r"wanted the first two, or masks, got boxes$"):
        relevant_tokens(capture, boxes)
    with pytest.raises(ValueError, match="image: wanted one of 1 of sample 0, got 1"):
        relevant_tokens(capture, boxes, sizes, image=1)
