"""Guides: forms of their places, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vrga_ext import Guide, VRGAConfig

SIZE = (100, 60)


def test_places_of_one_picture_and_of_several():
    one = Guide(boxes=[(0, 0, 10, 10)], points=[(5, 5)], image_sizes=SIZE)
    assert one.boxes == (((0.0, 0.0, 10.0, 10.0),),)
    assert (one.points, one.image_sizes) == ((((5.0, 5.0),),), (SIZE,))
    two = Guide(boxes=[[], [(0, 0, 10, 10)]], image_sizes=[SIZE, (20, 20)])
    assert two.boxes == ((), ((0.0, 0.0, 10.0, 10.0),))
    arrays = Guide(boxes=np.array([[0, 0, 10, 10]]), image_sizes=np.array(SIZE))
    assert arrays.boxes == one.boxes


def test_masks_carry_their_size():
    mask = np.zeros(SIZE[::-1], bool)
    mask[3, 4] = True
    assert Guide(masks=mask).image_sizes == (SIZE,)
    assert Guide(masks=[mask, mask]).image_sizes == (SIZE, SIZE)
    assert Guide(masks=mask.tolist()).image_sizes == (SIZE,)
    assert Guide(masks=[None, mask], image_sizes=[(5, 5), SIZE]).masks[0] is None


def test_what_a_guide_leaves_out_is_the_configurations():
    config = VRGAConfig(gamma=3.0, suppress=0.25)
    assert Guide(tokens=[2, 1, 2]).tokens == (1, 2)
    assert Guide().configured(config) == config
    assert Guide(suppress=0.5).configured(config) == config.replace(suppress=0.5)


def test_a_plain_guide_equals_its_object():
    plain = {
        "boxes": [[0, 0, 10, 10]],
        "image_sizes": [100, 60],
        "heads": [[1, 2]],
        "schedule": [[4, {"points": [[5, 5]], "image_sizes": [100, 60]}], [8, None]],
        "between": [7, 9],
    }
    guide = Guide.from_plain(plain)
    assert (guide.heads, guide.between) == (((1, 2),), (7, 9))
    assert [start for start, _ in guide.schedule] == [4, 8]
    assert guide.schedule[0][1].points == (((5.0, 5.0),),)


MASK = np.ones(SIZE[::-1], bool)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"boxes": [(0, 0, 10, 10)]}, ValueError, r"image_sizes: wanted \(width, height\)"),
        ({"boxes": [(90, 0, 110, 10)]}, ValueError, r"inside a picture of 100 x 60, got \(90, 0"),
        ({"boxes": [(-1, 0, 10, 10)]}, ValueError, r"inside a picture of 100 x 60"),
        ({"boxes": [(10, 0, 10, 10)]}, ValueError, r"boxes: wanted x0 < x1 and y0 < y1"),
        ({"boxes": [(10, 9, 20, 3)]}, ValueError, r"boxes: wanted x0 < x1 and y0 < y1"),
        ({"boxes": [(0, 0, math.nan, 3)]}, ValueError, "boxes: wanted finite numbers, got nan"),
        ({"boxes": [(0, 0, 3)]}, ValueError, r"boxes: wanted a list of \(x0, y0, x1, y1\)"),
        ({"boxes": []}, ValueError, r"boxes: wanted at least one .*, got none; leave it out"),
        ({"boxes": [[(0, 0, 9, 9)], []]}, ValueError, "boxes: wanted one list for each of 1"),
        ({"boxes": [("a", 0, 9, 9)]}, TypeError, r"boxes: wanted a list of .*got 'a'"),
        ({"boxes": [(0, "a", 9, 9)]}, TypeError, "boxes: wanted numbers, got 'a'"),
        ({"boxes": 3}, TypeError, r"boxes: wanted a list of"),
        ({"points": [(100, 61)]}, ValueError, "points: wanted points inside a picture of 100 x 60"),
        ({"masks": MASK[:, :50]}, ValueError, r"masks: wanted the size of the picture"),
        ({"masks": MASK.astype(int)}, TypeError, r"masks: wanted bool \[height, width\]"),
        ({"masks": ~MASK}, ValueError, "masks: wanted at least one True in each mask"),
        ({"tokens": []}, ValueError, "tokens: wanted at least one position, got none"),
        ({"tokens": [-1]}, ValueError, "tokens: wanted positions of at least 0, got -1"),
        ({"tokens": [1.5]}, TypeError, "tokens: wanted whole numbers, got 1.5"),
        ({"heads": [(1, 2, 3)]}, ValueError, r"heads: wanted .*\(layer, head\)"),
        ({"heads": []}, ValueError, "heads: wanted at least one"),
        ({"image_sizes": (0, 5)}, ValueError, "image_sizes: wanted a width and a height"),
        ({"gamma": -1.0}, ValueError, "gamma: wanted a number in"),
        ({"suppress": 2.0}, ValueError, r"suppress: wanted a number in \[0, 1\], got 2"),
        ({"min_coverage": 0}, ValueError, r"min_coverage: wanted a number in \(0, 1\]"),
        ({"between": (3, 3)}, ValueError, "between: wanted the ids of two different tokens"),
        ({"schedule": [(3, None), (3, None)]}, ValueError, "schedule: wanted ascending"),
        ({"schedule": [(3, Guide())]}, ValueError, "schedule: wanted guides with boxes"),
        ({"schedule": [(3, Guide(tokens=[1], gamma=1.0))]}, ValueError, "guides without gamma"),
        ({"schedule": [(3, "off")]}, TypeError, "schedule: wanted a Guide or None, got 'off'"),
    ],
)
def test_bad_input_names_the_argument(fields, error, message):
    sizes = {} if "image_sizes" in message or "image_sizes" in fields else {"image_sizes": SIZE}
    with pytest.raises(error, match=message):
        Guide(**sizes | fields)
