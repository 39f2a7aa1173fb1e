"""Pixels of a box change; the tokens whose input changes are those that the geometry names."""

from __future__ import annotations

import numpy as np
import pytest

from tests.geometry.families import CASES, NOWHERE, Case, Tokens
from vrga_ext.geometry import TokenGeometry, token_geometry

SIZES = ((150, 96), (70, 190))
REACH = 4  # of the widest resampling filter, in pixels of the smaller of both pictures


def changed_tokens(case: Case, tokens: Tokens, before, after) -> np.ndarray:
    """Tokens with an element that differs, bool [n]."""
    one, other = (output["pixel_values"].float().numpy() for output in (before, after))
    differ = np.abs(one - other) > 1e-4
    if tokens.of.ndim == 1 or differ.ndim == 3:  # patches: all of an element's pixels
        differ = differ.reshape(tokens.of.size, -1).any(1)
    else:
        differ = differ.any(-3)
    differ = differ.reshape(tokens.of.shape)
    found = np.zeros(tokens.count, dtype=bool)
    found[tokens.of[differ & (tokens.of != NOWHERE)]] = True
    return found


def within(geometry: TokenGeometry, box, margin: np.ndarray) -> np.ndarray:
    """Tokens whose rectangle meets a box grown by a margin [n, 2], bool [n]."""
    left, top, right, bottom = geometry.rects.T
    return (
        (left < box[2] + margin[:, 0])
        & (right > box[0] - margin[:, 0])
        & (top < box[3] + margin[:, 1])
        & (bottom > box[1] - margin[:, 1])
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_tokens_whose_pixels_change(name, size):
    case = CASES[name]
    width, height = size
    picture = np.full((height, width, 3), 60, dtype=np.uint8)
    before = case.run(picture)
    tokens = case.tokens(before)
    geometry = token_geometry(case.build(), size, tokens.count, config=case.config, **case.options)
    assert geometry is not None
    assert len(geometry) == tokens.count
    shown = geometry.level >= 0
    # Pixels of the picture per pixel of the plane, at least 1; patches count as 14 pixels.
    sides = geometry.rects[:, 2:] - geometry.rects[:, :2]
    pixels = case.step if case.step > 4 else 14 * case.step
    scale = np.nanmax(sides[shown], 0) / pixels
    margin = np.broadcast_to(REACH * np.maximum(scale, 1) + 0.5, (len(geometry), 2))
    seen = np.zeros(len(geometry), dtype=bool)
    for box in (
        (0, 0, width // 3, height // 3),
        (width // 2, height // 2, width // 2 + 30, height // 2 + 30),
        (width - 25, height // 4, width, height),
    ):
        other = picture.copy()
        other[box[1] : box[3], box[0] : box[2]] = 200
        changed = changed_tokens(case, tokens, before, case.run(other))
        inside = within(geometry, box, np.full((len(geometry), 2), -0.75))
        assert changed[inside].all(), np.flatnonzero(inside & ~changed)
        outside = ~within(geometry, box, margin)
        assert not changed[outside & shown].any(), np.flatnonzero(changed & outside & shown)
        assert changed.any() or not inside.any()
        seen |= changed
    assert not seen[~shown].any()
