"""Maps and pages whose tokens lie where a geometry says."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.viz.scenes import told
from vrga_ext import viz
from vrga_ext.geometry import TokenGeometry
from vrga_ext.selection import Span
from vrga_ext.viz.rects import rect_boundary


def even(rows: int, columns: int, box) -> np.ndarray:
    x, y = np.linspace(box[0], box[2], columns + 1), np.linspace(box[1], box[3], rows + 1)
    return np.array([(x[j], y[i], x[j + 1], y[i + 1]) for i in range(rows) for j in range(columns)])


# The 36 tokens of the demo's picture of 168 x 168 pixels as another processor would have them: 9 of
# the whole picture, 25 of a tile in its middle, a separator and one of padding.
WHOLE, TILE = even(3, 3, (0, 0, 168, 168)), even(5, 5, (42, 42, 126, 126))
TILED = TokenGeometry(
    np.concatenate([WHOLE, TILE, np.full((2, 4), np.nan)]),
    np.repeat([0, 1, -1], [9, 25, 2]),
    (168,) * 2,
)


@pytest.fixture
def axes():
    return Figure().subplots()


def at(raster: np.ndarray, x: float, y: float) -> float:
    """Value of a raster at a place in pixels of the picture."""
    return raster[int(y * raster.shape[0] / 168), int(x * raster.shape[1] / 168)]


def test_tiles_are_painted_over_the_whole_picture():
    values = np.arange(36) / 100
    both, whole, tiles = (viz.paint(values, TILED, level) for level in (None, 0, 1))
    for token, (left, top, right, bottom) in enumerate(TILED.rects[:34]):
        x, y = (left + right) / 2, (top + bottom) / 2
        own, other = (whole, tiles) if token < 9 else (tiles, whole)
        assert at(own, x, y) == values[token]
        covered = token < 9 and 42 < x < 126 and 42 < y < 126
        assert at(both, x, y) == (at(tiles, x, y) if covered else values[token])
        assert np.isfinite(at(other, x, y)) == (token >= 9 or covered)
    assert np.isnan(tiles).mean() == pytest.approx(0.75, abs=0.01)
    assert not np.isin(both, values[34:]).any()  # separators and padding


def test_extreme_pictures_are_painted():
    narrow = TokenGeometry(even(1, 8, (0, 0, 4000, 3)), np.zeros(8), (4000, 3))
    raster = viz.paint(np.arange(8), narrow)
    assert raster.shape == (1, 1024)
    assert np.unique(raster).tolist() == [*range(8)]


def test_a_map_is_drawn_where_its_tokens_lie(axes):
    values = np.zeros(36)
    values[[0, 9]] = 0.4, 0.5
    region = values > 0.45
    viz.draw_map(axes, told().image, values, region=region, geometry=TILED)
    drawn = axes.images[-1]
    assert drawn.get_extent() == [0, 168, 168, 0]
    assert at(drawn.get_array(), 5, 5) == 0.4
    assert at(drawn.get_alpha(), 5, 5) > at(drawn.get_alpha(), 100, 100) == 0
    ends = np.array(axes.collections[0].get_segments())
    np.testing.assert_allclose(ends.min((0, 1)), TILE[0, :2], atol=0.01)
    np.testing.assert_allclose(ends.max((0, 1)), TILE[0, 2:], atol=0.01)


def test_one_level_is_drawn(axes):
    region = np.ones(36, dtype=bool)
    viz.draw_picture(axes, told().image, region=region, geometry=TILED, level=1)
    ends = np.array(axes.collections[0].get_segments())
    assert (ends.min(), ends.max()) == (42, 126)


def test_the_region_of_a_prompt_is_drawn_by_rectangles(axes):
    region = told().capture.region(0)
    viz.draw_region(axes, told().image, region, geometry=TILED)
    shown = axes.images[-1].get_array()
    for token, (left, top, right, bottom) in enumerate(TILED.rects[:34]):
        x, y = (left + right) / 2, (top + bottom) / 2
        if token >= 9:
            assert at(shown, x, y) == float(region.refined_map[token])
    with pytest.raises(ValueError, match="index: wanted one of 1 images, got 1"):
        viz.draw_region(axes, told().image, region, geometry=TILED, index=1)


def test_compared_maps_have_one_scale_and_count_each_token_once():
    pair = Figure().subplots(1, 2)
    before, after = np.full(36, 0.01), np.full(36, 0.02)
    viz.compare_maps(pair, told().image, before, after, region=before > 1, geometry=TILED, level=0)
    assert [own.images[-1].norm.vmax for own in pair] == [0.02] * 2
    assert "36% on the picture" in pair[0].texts[0].get_text()


def test_values_are_divided_among_pictures():
    spans = [Span(0, 3, 1, None), Span(3, 2, 0, (1, 2)), Span(5, 2, 1, None)]
    one = TokenGeometry(even(2, 2, (0, 0, 8, 8)), np.zeros(4), (8, 8))
    other = TokenGeometry(even(1, 1, (0, 0, 8, 8)), np.zeros(1), (8, 8))
    first, second = viz.token_values(np.arange(7), spans, [one, other])
    assert first.tolist() == [1, 2, 3, 4]
    assert second.tolist() == [6]
    with pytest.raises(ValueError, match=r"geometry: wanted those of 5 image tokens, got \[4\]"):
        viz.token_values(np.arange(7), spans, [one])
    with pytest.raises(ValueError, match=r"values: wanted \[..., n\] with n at least 7, got \[6\]"):
        viz.token_values(np.arange(6), spans, [one, other])


def test_a_border_has_no_lines_between_its_tokens():
    length = np.abs(np.diff(rect_boundary(WHOLE), axis=1)).sum()
    assert length == pytest.approx(4 * 168)
    corners = rect_boundary(WHOLE[[0, 8]])
    assert np.abs(np.diff(corners, axis=1)).sum() == pytest.approx(8 * 56)
    assert rect_boundary(WHOLE[:0]).size == 0


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def test_the_page_has_a_panel_for_each_level():
    scene = told()
    region = np.arange(36) == 10
    page = viz.html_page(scene.capture, scene.image, scene.tokens, region=region, geometry=TILED)
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page)
    assert captions == ["tokens of the whole picture", "tokens of its tiles"]
    assert re.findall(r'<canvas width="(\d+)" height="(\d+)">', page) == [("1024", "1024")] * 2
    data = page_data(page)
    scale = 1024 / 168
    np.testing.assert_array_equal(data["rects"][0], np.rint(WHOLE * scale))
    np.testing.assert_array_equal(data["rects"][1], np.rint(TILE * scale))
    painted = np.frombuffer(base64.b64decode(data["maps"]), dtype=np.uint8)
    maps = viz.per_token(viz.head_maps(scene.capture), scene.capture, len(scene.tokens))[:, :34]
    wanted = np.rint(np.nan_to_num(maps) / np.nanmax(maps) * 255)
    np.testing.assert_array_equal(painted.reshape(len(maps), 34), wanted)
    whole, tile = re.findall(r'aria-hidden="true"><path d="(.*?)">', page)
    assert whole == ""
    numbers = np.array(re.findall(r"[\d.]+", tile), dtype=float).reshape(-1, 2)
    np.testing.assert_allclose(numbers.min(0), TILE[1, :2] * scale, atol=0.01)
    np.testing.assert_allclose(numbers.max(0), TILE[1, 2:] * scale, atol=0.01)


def test_a_page_of_one_level_has_no_caption():
    scene = told()
    even_grid = TokenGeometry(even(6, 6, (0, 0, 168, 168)), np.zeros(36), (168, 168))
    page = viz.html_page(scene.capture, scene.image, scene.tokens, geometry=[even_grid])
    assert "<figcaption" not in page
    plain = viz.html_page(scene.capture, scene.image, scene.tokens)
    assert page_data(page)["maps"] == page_data(plain)["maps"]
    assert page_data(plain)["rects"] == [None]


def test_a_geometry_that_does_not_fit_is_refused(axes):
    scene = told()
    other = TokenGeometry(even(6, 6, (0, 0, 90, 60)), np.zeros(36), (90, 60))
    with pytest.raises(ValueError, match="geometry: wanted that of a picture of 168 x 168 pixels"):
        viz.draw_map(axes, scene.image, np.zeros(36), geometry=other)
    with pytest.raises(ValueError, match="geometry: wanted that of a picture of 168 x 168 pixels"):
        viz.html_page(scene.capture, scene.image, scene.tokens, geometry=other)
    with pytest.raises(ValueError, match="geometry: wanted one for each of 1 pictures, got 2"):
        viz.html_page(scene.capture, scene.image, scene.tokens, geometry=[TILED] * 2)
    with pytest.raises(ValueError, match=r"values: wanted \[36\], got \[6, 6\]"):
        viz.draw_map(axes, scene.image, np.zeros((6, 6)), geometry=TILED)
    with pytest.raises(ValueError, match=r"region: wanted \[36\], got \[4\]"):
        viz.draw_map(axes, scene.image, np.zeros(36), region=np.ones(4, bool), geometry=TILED)
    with pytest.raises(ValueError, match=r"region: wanted bool \[36\], got int64 \[36\]"):
        viz.draw_picture(axes, scene.image, region=np.ones(36, np.int64), geometry=TILED)
