"""Tiles that a model puts together again, behind tokens of the whole picture."""

from __future__ import annotations

import math

import numpy as np

from vrga_ext.geometry.cells import Cells, Shape, floor
from vrga_ext.geometry.planes import Plane
from vrga_ext.geometry.ramps import Size


def mosaic_cells(planes: list[Plane], size: Size, count: int, tile: Shape) -> Cells | None:
    """The whole picture, then its tiles put together again, with a separator behind each row.

    Rows or columns of the mosaic that are padding alone are cut. A large mosaic is shrunk.

    Parameters
    ----------
    planes
        The whole picture and its tiles, row-major.
    size
        Width and height of the picture (pixels).
    count
        Number of image tokens.
    tile
        Token rows and columns of a tile.
    """
    rows, columns = planes[0].shape
    step = rows // tile[0]
    if step == 0 or columns // step != tile[1]:
        return None
    cells = Cells()
    cells.add_plane(planes[0], 0, step, floor)
    rest = count - len(cells.rects)
    if rest == 0:  # so narrow a picture that no token of its tiles is left
        return cells
    tiles = {index: plane for index, plane in enumerate(planes[1:]) if plane.scale is not None}
    if not tiles:
        return None
    scale = np.median([plane.scale for plane in tiles.values()], axis=0)  # x, y
    extent = scale * (columns, rows)
    starts = np.array([plane.start for plane in tiles.values()])
    across, down = (round(v) + 1 for v in (np.ptp(starts, 0) / extent).tolist())
    across, down = _mosaic_shape(across, down, len(planes) - 1)
    places = np.array([divmod(index, across)[::-1] for index in tiles])
    corner = np.median(starts - places * extent, 0)
    full = down * tile[0], across * tile[1]
    kept = _unpadded(full, size)
    shown = _shown(rest, full, kept)
    if shown is None:
        return None
    tops, bottoms = _edges(corner[1], scale[1], rows, tile[0], step, full[0], kept[0], shown[0])
    lefts, rights = _edges(corner[0], scale[0], columns, tile[1], step, full[1], kept[1], shown[1])
    for top, bottom in zip(tops, bottoms, strict=True):
        for left, right in zip(lefts, rights, strict=True):
            cells.add((left, top, right, bottom), 0.0, 1)
        cells.add_separators(1, 1)
    return cells


def _mosaic_shape(across: int, down: int, tiles: int) -> tuple[int, int]:
    """Tiles across and down; those of nothing but padding are beyond the ones that were seen."""
    while across * down < tiles:
        if tiles % (across + 1) == 0:
            across += 1
        else:
            down += 1
    return across, down


def _unpadded(full: Shape, size: Size) -> Shape:
    """Token rows and columns of a mosaic without what is padding alone, cut from both ends."""
    (rows, columns), (width, height) = full, size
    if width * rows > height * columns:
        return rows - (rows - int(round(height * columns / width, 7))) // 2 * 2, columns
    return rows, columns - (columns - int(round(width * rows / height, 7))) // 2 * 2


def _shown(rest: int, full: Shape, kept: Shape) -> Shape | None:
    """Rows and columns that ``rest`` tokens stand for, with a separator behind each row."""
    if rest == kept[0] * (kept[1] + 1):
        return kept
    if not min(kept):
        return None
    shrunk = [
        (abs(math.log(rows * kept[1] / (columns * kept[0]))), (rows, columns))
        for rows in range(1, full[0] + 1)
        if rest % rows == 0 and 1 <= (columns := rest // rows - 1) <= full[1]
    ]
    off, shape = min(shrunk, default=(math.inf, kept))
    return shape if off < 0.25 else None  # about the same shape


def _edges(
    start: float, scale: float, side: int, own: int, step: int, full: int, kept: int, shown: int
) -> tuple[list[float], list[float]]:
    """Lower and upper edges of the tokens of a mosaic along one axis (pixels of the picture).

    ``side`` elements of a tile hold ``own`` tokens of ``step`` each; what is left over at its end
    belongs to none. The middle ``kept`` of all ``full`` tokens are resized to ``shown``.
    """
    at = (full - kept) / 2 + np.arange(shown + 1) * kept / max(shown, 1)  # in tokens
    token = np.arange(full + 1)
    low = np.interp(at, token, token // own * side + token % own * step)
    high = np.where(at % own == 0, (at // own - 1) * side + own * step, low)
    return (start + scale * low[:-1]).tolist(), (start + scale * high[1:]).tolist()
