"""From values over the image tokens to the rectangles of a picture, with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vrga_ext._arguments import as_array
from vrga_ext.geometry import TokenGeometry
from vrga_ext.viz.grid import boundary

if TYPE_CHECKING:
    from vrga_ext.selection import Span

_RASTER = 1024  # cells along the longer side of a painted picture


def token_values(
    values: Any, spans: Sequence[Span], geometries: Sequence[TokenGeometry]
) -> list[np.ndarray]:
    """Divide values over the image tokens among pictures, each of one run of tokens or of several.

    Parameters
    ----------
    values : [..., n]
        One value per image token, in the order of ``region.image_positions``; a tensor or an array.
    spans
        Of the sample: ``region.images``.
    geometries
        One for each picture.

    Returns
    -------
    list of array [..., m]
        One value per token of each picture.

    Raises
    ------
    ValueError
        The pictures do not have as many tokens as the spans, or the values do not reach as far.

    Examples
    --------
    >>> from vrga_ext.selection import Span
    >>> geometry = TokenGeometry(np.array([(0, 0, 4, 8), (4, 0, 8, 8)]), np.zeros(2), (8, 8))
    >>> token_values([0.5, 0.1, 0.2], [Span(0, 3, 1, None)], [geometry])
    [array([0.1, 0.2])]
    """
    array = as_array(values)
    end = max((span.start + span.length for span in spans), default=0)
    if array.ndim == 0 or array.shape[-1] < end:
        raise ValueError(f"values: wanted [..., n] with n at least {end}, got {[*array.shape]}")
    own = [np.arange(span.start + span.lead, span.start + span.length) for span in spans]
    indices = np.concatenate([np.zeros(0, dtype=int), *own])
    lengths = [len(geometry) for geometry in geometries]
    if sum(lengths) != len(indices):
        raise ValueError(
            f"geometry: wanted those of {len(indices)} image tokens, got {lengths} tokens"
        )
    parts = np.split(indices, np.cumsum(lengths)[:-1])
    return [array[..., part] for part in parts]


def paint(values: Any, geometry: TokenGeometry, level: int | None = None) -> np.ndarray:
    """Paint the tokens of one picture where they lie: the whole picture first, tiles over it.

    Parameters
    ----------
    values : float [n]
        One per token of the picture.
    geometry
        Of the picture.
    level
        0 or 1: the tokens of this level alone.

    Returns
    -------
    float array [height, width]
        A raster over the picture, 1024 cells along its longer side; NaN where no token lies.

    Examples
    --------
    >>> geometry = TokenGeometry(np.array([(0, 0, 4, 8), (4, 0, 6, 8)]), np.zeros(2), (8, 8))
    >>> paint([0.5, 0.1], geometry)[0, ::256]
    array([0.5, 0.5, 0.1, nan])
    """
    array = as_array(values).astype(float)
    (width, height), scale = raster_size(geometry.size)
    raster = np.full((height, width), np.nan)
    for own in (0, 1) if level is None else (level,):
        for token in np.flatnonzero(geometry.level == own):
            left, top, right, bottom = np.rint(geometry.rects[token] * scale).astype(int)
            raster[top:bottom, left:right] = array[token]
    return raster


def raster_size(size: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of the raster over a picture, in cells; and cells per pixel of rectangles.

    Examples
    --------
    >>> raster_size((512, 128))
    ((1024, 256), array([2., 2., 2., 2.]))
    """
    width, height = (max(round(side * _RASTER / max(size)), 1) for side in size)
    return (width, height), np.array([width, height] * 2) / [*size, *size]


def rect_boundary(rects: np.ndarray) -> np.ndarray:
    """Border of the union of rectangles, as segments.

    Parameters
    ----------
    rects : float [k, 4]
        Left, top, right and bottom (pixels).

    Returns
    -------
    float array [m, 2, 2]
        Both ends (x, y) of each segment (pixels).

    Examples
    --------
    >>> rect_boundary(np.array([[0, 0, 4, 8], [4, 0, 6, 8]])).max((0, 1)).tolist()
    [6.0, 8.0]
    """
    near = np.round(np.asarray(rects, dtype=float), 2)  # sides of neighbours differ by a rounding
    xs, columns = np.unique(near[:, [0, 2]], return_inverse=True)
    ys, rows = np.unique(near[:, [1, 3]], return_inverse=True)
    marked = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for (top, bottom), (left, right) in zip(
        rows.reshape(-1, 2), columns.reshape(-1, 2), strict=True
    ):
        marked[top:bottom, left:right] = True
    segments = boundary(marked)
    if not len(segments):
        return segments.astype(float)
    return np.stack([xs[segments[..., 0]], ys[segments[..., 1]]], -1)


def as_geometries(
    geometry: TokenGeometry | Sequence[TokenGeometry], pictures: Sequence[Image.Image]
) -> list[TokenGeometry]:
    """One geometry for each picture.

    Raises
    ------
    ValueError
        There are not as many, or one is of a picture of another size.
    """
    given = [geometry] if isinstance(geometry, TokenGeometry) else list(geometry)
    if len(given) != len(pictures):
        raise ValueError(
            f"geometry: wanted one for each of {len(pictures)} pictures, got {len(given)}"
        )
    for own, picture in zip(given, pictures, strict=True):
        if own.size != picture.size:
            raise ValueError(
                f"geometry: wanted that of a picture of {picture.size[0]} x {picture.size[1]} "
                f"pixels, got one of {own.size[0]} x {own.size[1]}"
            )
    return given
