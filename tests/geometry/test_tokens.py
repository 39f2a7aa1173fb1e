"""Boxes, masks and points in pixels to tokens, given the tokens' rectangles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrga_ext.geometry import TokenGeometry

SIZE = (50, 31)


def even(rows: int, columns: int, box=(0, 0, *SIZE)) -> np.ndarray:
    """Rectangles of a grid over a box."""
    x = np.linspace(box[0], box[2], columns + 1)
    y = np.linspace(box[1], box[3], rows + 1)
    return np.array([(x[j], y[i], x[j + 1], y[i + 1]) for i in range(rows) for j in range(columns)])


GRID = TokenGeometry(even(3, 4), np.zeros(12), SIZE)  # tokens of 12.5 x 10.33 pixels
# The whole picture; a separator; two tiles of 2 x 2 tokens, of which one is beside the other.
TILED = TokenGeometry(
    np.concatenate(
        [
            even(3, 4),
            np.full((1, 4), np.nan),
            even(2, 2, (0, 0, 25, 31)),
            even(2, 2, (25, 0, 50, 31)),
        ]
    ),
    np.repeat([0, -1, 1], [12, 1, 8]),
    SIZE,
)


def counted(box: tuple[int, int, int, int]) -> np.ndarray:
    """Share of each token of GRID that a box of whole pixels covers, on a raster of 1/12 pixel."""
    fine = torch.zeros(31 * 12, 50 * 12)
    left, top, right, bottom = (12 * edge for edge in box)
    fine[top:bottom, left:right] = 1
    return torch.nn.functional.avg_pool2d(fine[None], (124, 150))[0].flatten().numpy()


@pytest.mark.parametrize("min_coverage", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    "box", [(0, 0, 50, 31), (0, 0, 25, 11), (7, 3, 30, 26), (20, 0, 50, 9), (13, 11, 37, 31)]
)
def test_coverage_of_tokens(box, min_coverage):
    wanted = counted(box) >= min_coverage
    if not wanted.any():
        wanted = counted(box) > counted(box).max() - 1e-6
    wanted = np.flatnonzero(wanted).tolist()
    assert GRID.box_tokens([box], min_coverage=min_coverage).tolist() == wanted
    mask = torch.zeros(31, 50, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    for given_mask in (mask, mask.numpy(), mask.bfloat16(), Image.fromarray(mask.numpy())):
        found = GRID.mask_tokens(given_mask, min_coverage=min_coverage)
        assert found.tolist() == wanted


def test_a_small_box_gets_the_token_it_covers_most():
    assert GRID.box_tokens([(24, 14, 30, 16)]).tolist() == [6]
    assert GRID.box_tokens([(24, 14, 30, 16), (0, 0, 1, 1)]).tolist() == [0, 6]
    assert GRID.box_tokens([(-5, -5, 2, 2)]).tolist() == [0]
    assert GRID.box_tokens([(12, 1, 13, 2)]).tolist() == [0, 1]  # as much of both


def test_a_box_that_grazes_the_picture_or_a_token_gets_none_that_it_does_not_touch():
    assert GRID.box_tokens([(49.99999999999999, 11, 70, 20)]).tolist() == [7]
    large = TokenGeometry(even(2, 2, (0, 0, 4000, 3000)), np.zeros(4), (4000, 3000))
    assert large.box_tokens([(10, 10, 10.001, 10.001)]).tolist() == [0]


def test_both_levels_show_a_box_and_one_can_be_asked_for():
    box = [(0, 0, 25, 15.5)]
    both = TILED.box_tokens(box)
    assert both.tolist() == [0, 1, 4, 5, 13, 14]  # half of the second row of the whole picture
    assert TILED.box_tokens(box, level=0).tolist() == [0, 1, 4, 5]
    assert TILED.box_tokens(box, level=1).tolist() == [13, 14]
    assert TILED.point_tokens([(1, 1), (49, 30)]).tolist() == [0, 11, 13, 20]
    assert TILED.point_tokens([(1, 1), (49, 30)], level=1).tolist() == [13, 20]
    for level in (0, 1):
        assert GRID.box_tokens([(24, 14, 30, 16)], level=level).tolist() == [6][level:]


def test_a_part_that_no_token_shows():
    half = TokenGeometry(even(2, 2, (25, 0, 50, 31)), np.zeros(4), SIZE)
    assert half.box_tokens([(0, 0, 20, 9)]).tolist() == []
    assert half.mask_tokens(np.arange(50) < np.full((31, 1), 25)).tolist() == []
    assert half.point_tokens([(3, 3)]).tolist() == []
    assert half.box_tokens([(0, 0, 20, 9), (40, 0, 50, 15)]).tolist() == [1]


@given(
    st.tuples(*[st.floats(0, 50)] * 2),
    st.tuples(*[st.floats(0, 31)] * 2),
    st.floats(0.01, 1),
    st.sampled_from([None, 0, 1]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_each_token_lies_far_enough_in_the_box_or_is_the_best_of_its_level(x, y, share, level):
    (left, right), (top, bottom) = sorted(x), sorted(y)
    if min(right - left, bottom - top) < 1e-9 or max(right, bottom) <= 1:
        return
    chosen = TILED.box_tokens([(left, top, right, bottom)], min_coverage=share, level=level)
    low = np.maximum(TILED.rects[:, :2], (left, top))
    high = np.minimum(TILED.rects[:, 2:], (right, bottom))
    covered = (high - low).clip(0).prod(1) / (TILED.rects[:, 2:] - TILED.rects[:, :2]).prod(1)
    for own in (0, 1) if level is None else (level,):
        of_level = np.flatnonzero(TILED.level == own)
        enough = of_level[covered[of_level] >= share]
        best = of_level[covered[of_level] >= covered[of_level].max() * (1 - 1e-5)]
        mine = chosen[TILED.level[chosen] == own]
        assert set(enough) <= set(mine)
        assert set(mine) <= {*of_level[covered[of_level] >= share * (1 - 1e-5)], *best}
        assert len(mine)
    assert level is None or (TILED.level[chosen] == level).all()


@given(st.lists(st.floats() | st.integers(-99, 99) | st.sampled_from([0, 1, 0.5]), max_size=5))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_box_has_a_token_or_is_refused(box):
    try:
        chosen = GRID.box_tokens([box])
    except ValueError as error:
        assert str(error).startswith("boxes: wanted ")  # noqa: PT017
        return
    left, top, right, bottom = box
    assert chosen.size
    assert left < right
    assert top < bottom
    assert max(right, bottom) > 1 or min(left, top) < 0


@given(st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_mask_of_a_box_has_the_tokens_of_the_box(data):
    left, right = sorted(
        data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=2, unique=True))
    )
    top, bottom = sorted(
        data.draw(st.lists(st.integers(0, 31), min_size=2, max_size=2, unique=True))
    )
    if max(right, bottom) <= 1:
        return
    mask = np.zeros((31, 50), dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    box = [(left, top, right, bottom)]
    assert TILED.mask_tokens(mask).tolist() == TILED.box_tokens(box).tolist()


def test_neighbours_touch_within_a_level_and_across_tiles():
    assert TILED.neighbours([0]).tolist() == [1, 4, 5]
    assert TILED.neighbours([5]).tolist() == [0, 1, 2, 4, 6, 8, 9, 10]
    assert TILED.neighbours([14]).tolist() == [13, 15, 16, 17, 19]
    assert TILED.neighbours([13, 14]).tolist() == [15, 16, 17, 19]
    assert TILED.neighbours([12]).tolist() == TILED.neighbours([]).tolist() == []
    apart = even(2, 4)
    apart[:, [0, 2]] *= 0.97  # a strip that no token shows is no border between tokens
    pages = TokenGeometry(apart, np.zeros(8), SIZE, page=[0, 0, 0, 0, 0, 1, 1, 1])
    assert pages.neighbours(np.array([1])).tolist() == [0, 2, 4]


def test_border_tokens_of_each_level():
    assert GRID.border_tokens().tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert TILED.border_tokens(level=1).tolist() == [*range(13, 21)]
    assert TILED.border_tokens().tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, *range(13, 21)]
    cut = TokenGeometry(even(3, 3, (10, 0, 40, 31)), np.zeros(9), SIZE)
    assert cut.border_tokens().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 4, 9), (60, 3, 70, 9)])
def test_a_box_without_an_area_is_refused(box):
    with pytest.raises(ValueError, match=r"wanted \(left, top, right, bottom\) with an area"):
        GRID.box_tokens([box])


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
def test_boxes_in_shares_of_the_picture_are_refused(boxes):
    with pytest.raises(
        ValueError,
        match=r"boxes: wanted \(left, top, right, bottom\) in pixels of the image of 50 x 31, got "
        r"\(0.*\), which are shares of its sides: multiply them by width and height",
    ):
        GRID.box_tokens(boxes)


def test_boxes_in_pixels_near_the_corner_are_taken():
    """A part of the first pixel is none, but what reaches into the second one is."""
    for box in ((0, 0, 1, 2), (0.5, 0.5, 1.5, 1.5), (0, 0, 1.001, 1), (-0.5, 0, 0.5, 1)):
        assert GRID.box_tokens([box]).tolist() == [0]
    pixel = TokenGeometry(even(1, 2, (0, 0, 1, 1)), np.zeros(2), (1, 1))
    assert pixel.box_tokens([(0, 0, 0.5, 1)]).tolist() == [0]


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, True, "9", None, 1j, 10**400, [9]])
def test_boxes_of_something_else_than_finite_numbers_are_refused(side, value):
    box = [2, 3, 30, 26]
    box[side] = value
    for boxes in ([box], [(0, 0, 9, 9), box]):
        with pytest.raises(ValueError, match=r"boxes: wanted .*left, top, right, bottom"):
            GRID.box_tokens(boxes)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="min_coverage"):
        GRID.box_tokens([(0, 0, 9, 9)], min_coverage=0)
    with pytest.raises(ValueError, match="min_coverage"):
        GRID.mask_tokens(np.ones((31, 50)), min_coverage=1.5)
    for level in (2, -1, "tiles"):
        with pytest.raises(ValueError, match="level: wanted 0, 1 or None"):
            GRID.box_tokens([(0, 0, 9, 9)], level=level)
    with pytest.raises(ValueError, match="at least one pixel"):
        GRID.mask_tokens(np.zeros((31, 50)))
    for mask in (np.ones((50, 31)), np.ones(4), Image.new("RGB", SIZE)):
        with pytest.raises(ValueError, match=r"mask: wanted \[height, width\] .* \[31, 50\], got"):
            GRID.mask_tokens(mask)
    for boxes in ((10, 10, 50, 20), [(1, 2, 3)], [(1, 2, 3, "4")], 5):
        with pytest.raises(ValueError, match=r"boxes: wanted a list of \(left, top, right, bot"):
            GRID.box_tokens(boxes)
    for points in ((3, 4), [(50, 3)], [(3, -0.1)], [(np.nan, 1)]):
        with pytest.raises(ValueError, match=r"points: wanted .*\(x, y\)"):
            GRID.point_tokens(points)
    for tokens in ([12], [-1], [0.5], [[1]]):
        with pytest.raises(ValueError, match="tokens: wanted"):
            GRID.neighbours(tokens)


def test_a_geometry_of_arrays_that_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"rects: wanted \[n, 4\], got \[4, 2\]"):
        TokenGeometry(np.zeros((4, 2)), np.zeros(4), SIZE)
    with pytest.raises(ValueError, match=r"level: wanted \[12\], got \[11\]"):
        TokenGeometry(even(3, 4), np.zeros(11), SIZE)
    with pytest.raises(ValueError, match="level: wanted -1 for the tokens without a rectangle"):
        TokenGeometry(np.full((2, 4), np.nan), np.zeros(2), SIZE)
