"""The pictures of the page, and the image tokens that are painted over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vrga_ext.geometry import TokenGeometry
from vrga_ext.geometry.tokens import TILE, WHOLE
from vrga_ext.selection import Span
from vrga_ext.viz.grid import Box, boundary, covered
from vrga_ext.viz.rects import raster_size, rect_boundary, token_values

_LARGEST = 1024  # pixels of a picture's longer side on the page
_LEVELS = {WHOLE: "tokens of the whole picture", TILE: "tokens of its tiles"}


@dataclass(frozen=True)
class Panel:
    """One picture of the page, and the image tokens that are painted over it.

    Attributes
    ----------
    tokens : int64 [k]
        Indices among the sample's image tokens.
    rects : list of (left, top, right, bottom), optional
        Of each token, in cells of the canvas; None for a grid, which fills it.
    shown : dict
        What the template shows.
    """

    tokens: np.ndarray
    rects: list[list[int]] | None
    shown: dict[str, Any]


def grid_panel(
    picture: Image.Image, indices: np.ndarray, marked: np.ndarray, box: Box | None
) -> Panel:
    """The panel of a picture whose tokens form a grid.

    Parameters
    ----------
    picture
        The picture.
    indices : int [rows, columns]
        The grid's tokens among the sample's image tokens.
    marked : bool [n]
        Image tokens to outline.
    box
        The part of the picture that the grid covers; all of it without one.
    """
    left, upper, right, lower = covered(picture, box)
    rows, columns = indices.shape
    place = {
        "left": 100 * left / picture.width,
        "upper": 100 * upper / picture.height,
        "across": 100 * (right - left) / picture.width,
        "down": 100 * (lower - upper) / picture.height,
        "rows": rows,
        "columns": columns,
        "outline": _path(boundary(marked[indices])),
    }
    return Panel(indices.ravel(), None, _picture(picture) | place)


def rect_panels(
    pictures: Sequence[Image.Image],
    geometries: Sequence[TokenGeometry],
    spans: Sequence[Span],
    marked: np.ndarray,
) -> list[Panel]:
    """The panels of pictures whose tokens lie in rectangles: one for each level of each picture.

    Parameters
    ----------
    pictures, geometries
        Of the prompt, as many of each.
    spans
        Of the sample's image tokens.
    marked : bool [n]
        Image tokens to outline.
    """
    panels = []
    every = token_values(np.arange(len(marked)), spans, geometries)
    for picture, geometry, indices in zip(pictures, geometries, every, strict=True):
        shown = _picture(picture)
        (columns, rows), scale = raster_size(geometry.size)
        for level in np.unique(geometry.level[geometry.level >= 0]):
            own = geometry.level == level
            rects = geometry.rects[own] * scale
            place = {
                "left": 0,
                "upper": 0,
                "across": 100,
                "down": 100,
                "rows": rows,
                "columns": columns,
                "outline": _path(rect_boundary(rects[marked[indices[own]]])),
                "caption": _LEVELS[level] if (geometry.level == TILE).any() else "",
            }
            panels.append(Panel(indices[own], np.rint(rects).astype(int).tolist(), shown | place))
    return panels


def _picture(picture: Image.Image) -> dict[str, Any]:
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return {
        "source": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        "width": small.width,
        "height": small.height,
    }


def _path(segments: np.ndarray) -> str:
    """SVG path of segments [k, 2, 2]."""
    return "".join(f"M{a:g} {b:g}L{c:g} {d:g}" for a, b, c, d in segments.reshape(-1, 4).tolist())
