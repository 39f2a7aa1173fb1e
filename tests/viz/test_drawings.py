"""Drawings on Axes: what stands where, and what is refused."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import vrga_ext
from tests.test_structure import imports
from tests.viz.scenes import told
from vrga_ext import viz
from vrga_ext.selection import Span

WHITE = np.full((60, 90, 3), 255, dtype=np.uint8)


def drawn(figure: Figure) -> np.ndarray:
    """Pixels of a figure, int [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def pixel(figure: Figure, axes: matplotlib.axes.Axes, x: float, y: float) -> np.ndarray:
    """Colour of a place given in pixels of the picture."""
    pixels = drawn(figure)
    right, up = axes.transData.transform((x, y))
    return pixels[pixels.shape[0] - 1 - int(up), int(right)]


@pytest.fixture
def axes():
    return Figure(figsize=(6, 4)).subplots()


def test_every_patch_is_laid_over_its_part_of_the_picture(axes):
    values = np.array([[0.0, 0.2, 0.0], [0.4, 0.0, 0.0]])
    viz.draw_map(axes, WHITE, values, box=(30, 0, 90, 60))
    figure = axes.figure
    for (row, column), value in np.ndenumerate(values):
        color = pixel(figure, axes, 30 + 20 * column + 10, 30 * row + 15)
        assert (np.ptp(color) > 20) == (value > 0), (row, column)
    assert np.ptp(pixel(figure, axes, 15, 30)) == 0  # outside the box
    strong, weak = pixel(figure, axes, 40, 45), pixel(figure, axes, 60, 15)
    assert strong.sum() < weak.sum()


def test_pictures_keep_their_proportions(axes):
    viz.draw_map(axes, np.zeros((300, 140), dtype=np.uint8), np.ones((2, 2)))
    drawn(axes.figure)
    box = axes.get_window_extent()
    assert box.height / box.width == pytest.approx(300 / 140, rel=0.02)


def test_the_outline_encloses_what_is_marked(axes):
    marked = np.array([[True, True, False], [False, True, False]])
    viz.draw_picture(axes, WHITE, region=marked)
    figure = axes.figure
    pink = np.array([0xD6, 0x00, 0x7A])
    on_border = [(30, 0), (30, 45), (60, 15), (60, 45), (45, 60), (15, 30)]
    inside = [(30, 15), (45, 30), (15, 15), (45, 45), (75, 30), (15, 45)]
    assert all(abs(pixel(figure, axes, x, y) - pink).sum() < 60 for x, y in on_border)
    assert all((pixel(figure, axes, x, y) == 255).all() for x, y in inside)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_lies_between_marked_and_unmarked_cells(seed):
    marked = np.random.default_rng(seed).random((4, 6)) < 0.5
    padded = np.pad(marked, 1)
    expected = set()
    for y, x in np.ndindex(5, 6):
        if padded[y, x + 1] != padded[y + 1, x + 1]:
            expected.add(((x, y), (x + 1, y)))
    for y, x in np.ndindex(4, 7):
        if padded[y + 1, x] != padded[y + 1, x + 1]:
            expected.add(((x, y), (x, y + 1)))
    found = [tuple(map(tuple, segment)) for segment in viz.boundary(marked).tolist()]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_cells_leave_out_a_start_token():
    values = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.bfloat16)
    span = Span(start=0, length=5, lead=1, grid=(2, 2))
    assert viz.cells(values, span).tolist() == [[1, 2], [3, 4]]


def test_the_region_of_a_prompt_is_drawn(axes):
    scene = told()
    region = scene.capture.region(0)
    viz.draw_region(axes, scene.image, region)
    shown = axes.images[-1].get_array()
    assert shown.shape == region.grid
    np.testing.assert_allclose(np.asarray(shown).ravel(), region.refined_map.numpy())
    cell = int(torch.isin(region.image_positions, region.focus).nonzero()[0])
    row, column = divmod(cell, region.grid[1])
    side = scene.image.width / region.grid[1]
    border = pixel(axes.figure, axes, column * side, (row + 0.5) * side)
    assert abs(border - [0xD6, 0x00, 0x7A]).sum() < 90


def test_compared_maps_have_one_scale():
    pair = Figure().subplots(1, 2)
    viz.compare_maps(pair, WHITE, np.array([[0.1, 0.2]]), np.array([[0.1, 0.5]]))
    assert {axes.images[-1].norm.vmax for axes in pair} == {0.5}
    assert [axes.texts[-1].get_text() for axes in pair] == [
        "30% on the picture",
        "60% on the picture",
    ]


def test_heads_and_their_fit(axes):
    entropy = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, np.inf]])
    ratio = 0.5 * entropy + 0.25
    viz.draw_heads(axes, ratio, entropy, selected=[(3, 1)], layers=[0, 3])
    others, selected = axes.collections
    assert len(others.get_offsets()) == 4
    assert selected.get_offsets().tolist() == [[5.0, 2.75]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[-1] == "fit: R = 0.50 H + 0.25, r = 1.00"


def test_layers_stand_at_the_models_numbers(axes):
    viz.draw_layers(axes, {"direct": [2.0, 3.0]}, layers=[3, 7], errors={"direct": [0.5, 0.1]})
    assert axes.lines[0].get_xydata().tolist() == [[3, 2], [7, 3]]
    assert axes.collections[0].get_datalim(axes.transData).y0 == pytest.approx(1.5)


def test_long_answers_are_labelled_as_far_as_there_is_room(axes):
    tokens = [f"t{i}" for i in range(1000)]
    viz.draw_drift(axes, {"R": np.arange(1000.0), "H": np.full(1000, np.nan)}, tokens)
    labels = axes.get_xticklabels()
    assert labels[0].get_text() == "t0"
    drawn(axes.figure)
    boxes = [label.get_window_extent() for label in labels]
    assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))


def test_a_models_text_is_no_formula(axes):
    viz.compare_drift(axes, {"R": [1.0, 2.0, 3.0]}, ["$x^{$", "\n", " a very long word indeed"])
    assert drawn(axes.figure).min() < 100
    assert axes.get_xticklabels()[1].get_text() == "↵"
    assert axes.get_xticklabels()[2].get_text() == "a very long w…"


def test_what_does_not_fit_is_refused(axes):
    ones = np.ones((2, 2))
    for wrong in (ones[0], -ones, np.nan * ones, np.inf * ones, np.ones((0, 2))):
        with pytest.raises(ValueError, match="values: wanted"):
            viz.draw_map(axes, WHITE, wrong)
    with pytest.raises(ValueError, match=r"region: wanted \[2, 2\], got \[1, 2\]"):
        viz.draw_map(axes, WHITE, ones, region=np.array([[True, False]]))
    with pytest.raises(ValueError, match="region: wanted bool"):
        viz.draw_map(axes, WHITE, ones, region=ones)
    with pytest.raises(ValueError, match=r"box: wanted .* within 90 x 60"):
        viz.draw_map(axes, WHITE, ones, box=(0, 0, 91, 60))
    for box in ((0, 0, 1, 1), (0.1, 0.1, 0.9, 0.9)):
        with pytest.raises(ValueError, match=r"box: wanted .* in pixels of the image of 90 x 60"):
            viz.draw_map(axes, WHITE, ones, box=box)
    for box in (5, (0, 0, 9), *((0, 0, right, 9) for right in (np.nan, np.inf, "9", True))):
        with pytest.raises(ValueError, match=r"box: wanted \(left, upper, right, lower\)"):
            viz.draw_map(axes, WHITE, ones, box=box)
    with pytest.raises(TypeError, match="image: wanted uint8"):
        viz.draw_map(axes, WHITE / 255, ones)
    with pytest.raises(ValueError, match=r"values: wanted \[\.\.\., n\] with n at least 4"):
        viz.cells([1, 2], Span(0, 4, 0, (2, 2)))
    with pytest.raises(ValueError, match="span: wanted an image whose tokens form a rectangle"):
        viz.cells([1, 2, 3], Span(0, 3, 0, None))
    with pytest.raises(ValueError, match="index: wanted one of 1 images, got 1"):
        viz.draw_region(axes, WHITE, told().capture.region(0), index=1)
    with pytest.raises(ValueError, match=r"one shape \[L, H\]"):
        viz.draw_heads(axes, ones, ones[0])
    with pytest.raises(ValueError, match=r"wanted \(layer, head\) .* got \(2, 0\)"):
        viz.draw_heads(axes, ones, ones, selected=[(2, 0)])
    with pytest.raises(ValueError, match="layers: wanted 2 entries, got 3"):
        viz.draw_heads(axes, ones, ones, layers=[0, 1, 2])
    with pytest.raises(ValueError, match="at least one head with finite"):
        viz.draw_heads(axes, ones * np.inf, ones)
    with pytest.raises(ValueError, match="at least one prompt style"):
        viz.draw_layers(axes, {})
    with pytest.raises(ValueError, match=r"wanted \[2\] for 'b', got \[3\]"):
        viz.draw_layers(axes, {"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"errors: wanted \[3\] for 'a', got \[2\]"):
        viz.draw_layers(axes, {"a": [1, 2, 3]}, errors={"a": [1, 2]})
    with pytest.raises(ValueError, match="pair: wanted two, got 3"):
        viz.compare_maps([axes] * 3, WHITE, ones, ones)
    with pytest.raises(ValueError, match=r"RRAR: wanted .* each of 1 tokens, got \[2\]$"):
        viz.draw_drift(axes, {"RRAR": [1.0, 2.0]}, ["a"])
    for draw, argument in ((viz.draw_drift, "values"), (viz.compare_drift, "lines")):
        with pytest.raises(
            ValueError, match=r"2 tokens, got \[1\]; the model never reads an answer"
        ):
            draw(axes, {"RRAR": [1.0]}, ["a", "star"])
        with pytest.raises(ValueError, match=f"{argument}: wanted values under at least one name"):
            draw(axes, {}, ["a", "star"])
        with pytest.raises(ValueError, match="tokens: wanted at least one text, got none"):
            draw(axes, {"RRAR": []}, [])


def test_nothing_global_is_touched(axes):
    before = dict(matplotlib.rcParams)
    viz.draw_map(axes, WHITE, np.ones((2, 2)))
    viz.draw_layers(Figure().subplots(), {"a": [1.0, 2.0]})
    assert dict(matplotlib.rcParams) == before
    for path in (Path(vrga_ext.__file__).parent / "viz").glob("*.py"):
        assert not any("pyplot" in name for name in imports(path)), path


def test_without_matplotlib_drawing_names_the_extra_and_the_page_works(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("vrga_ext.viz.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(viz, name.split(".")[2])
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    for name in ("draw_map", "draw_heads", "draw_drift", "compare_maps"):
        with pytest.raises(ImportError, match=r"pip install 'vrga_ext\[viz\]'"):
            getattr(viz, name)
    assert callable(viz.html_page)
