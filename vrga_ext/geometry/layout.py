"""From planes and the number of image tokens to the rectangle of each token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vrga_ext.geometry.planes import NOWHERE, Plane, Rect, finite_mean
from vrga_ext.geometry.ramps import Elements, Size

Shape = tuple[int, int]  # rows, columns
Fold = Callable[[int, int], int]
_LARGEST_BLOCK = 8  # patches along one side of a token


class Maps(NamedTuple):
    """Places of elements, in arrays of one shape.

    Attributes
    ----------
    x, y : float [...]
        Place of each element in the picture (pixels); NaN for padding.
    inside : float [...]
        Share of each element that shows the picture.
    """

    x: np.ndarray
    y: np.ndarray
    inside: np.ndarray


@dataclass
class Cells:
    """Tokens in their order; not cut to the picture.

    Attributes
    ----------
    rects : list of (left, top, right, bottom)
        In pixels of the picture; NaN for separators.
    padding : list of float
        Share of each that is not the picture.
    plane : list of int
        Index of the plane that each shows.
    """

    rects: list[Rect] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    plane: list[int] = field(default_factory=list)

    def add(self, rect: Rect, padding: float, plane: int) -> None:
        self.rects.append(rect)
        self.padding.append(padding)
        self.plane.append(plane)

    def add_plane(self, plane: Plane, index: int, step: int, fold: Fold) -> None:
        """The tokens of a plane, row-major, of ``step`` x ``step`` elements each."""
        rows, columns = plane.shape
        for i, j in itertools.product(range(fold(rows, step)), range(fold(columns, step))):
            top, left = i * step, j * step
            bottom, right = min(top + step, rows), min(left + step, columns)
            shown = float(plane.inside[top:bottom, left:right].mean())
            self.add(plane.rect(top, left, bottom, right), 1 - shown, index)

    def add_separators(self, count: int, plane: int) -> None:
        for _ in range(count):
            self.add(NOWHERE, 1.0, plane)


def floor(a: int, b: int) -> int:
    return a // b


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def token_cells(elements: Elements, size: Size, count: int, tile: Shape | None) -> Cells | None:
    """Divide the elements among ``count`` tokens; None if the number does not add up.

    Parameters
    ----------
    elements
        From :func:`vrga_ext.geometry.ramps.read_elements`.
    size
        Width and height of the picture (pixels).
    count
        Number of image tokens.
    tile
        Token rows and columns of a full tile, of models that put tiles together again and cut what
        is padded. Their numbers of tokens can be read in several ways without it.
    """
    shape = elements.x.shape
    maps = Maps(elements.x, elements.y, elements.inside.astype(np.float32))
    if len(shape) >= 4 and shape[-3] in (1, 3):  # [..., channels, height, width]
        height, width = shape[-2:]
        per_token = elements.x[..., 0, :, :].size / count
        if height > 32 or height**2 >= per_token * (1 - 1e-3):
            flat = (finite_mean(value, -3).reshape(-1, height, width) for value in maps)
            planes = [Plane(x, y, inside, size) for x, y, inside in zip(*flat, strict=True)]
            while len(planes) > 1 and not planes[-1].inside.any():  # filled up to other pictures'
                planes.pop()
            return _pixels(planes, size, count, tile)
        # Square patches, side by side.
        maps = Maps(
            *(
                value.reshape(-1, shape[-3], height, width // height, height)
                .transpose(0, 3, 1, 2, 4)
                .reshape(1, -1, shape[-3] * height**2)
                for value in maps
            )
        )
    if maps.x.ndim < 2:
        return None
    sequences = Maps(*(finite_mean(value.reshape(-1, *value.shape[-2:]), -1) for value in maps))
    return _patches(sequences, elements.side, size, count)


# ---- planes of pixels --------------------------------------------------------------------------


def _pixels(planes: list[Plane], size: Size, count: int, tile: Shape | None) -> Cells | None:
    cells = Cells()
    if tile is not None and len(planes) > 1:
        return _mosaic(planes, size, count, tile)
    for ends in (0, 1):  # separators behind each plane
        own = count // len(planes) - ends
        if count % len(planes) == 0 and (step := _step(planes[0].shape, own, floor)):
            for index, plane in enumerate(planes):
                cells.add_plane(plane, index, step, floor)
                cells.add_separators(ends, index)
            return cells
    if len(planes) > 1:
        return None
    # Only the part with the picture is divided: the rest fills the plane up to other pictures'.
    rows, columns = (int(np.flatnonzero(planes[0].inside.any(axis)).max()) + 1 for axis in (1, 0))
    part = planes[0].part(rows, columns, size)
    if step := _step(part.shape, count, ceil):
        cells.add_plane(part, 0, step, ceil)
        return cells
    return None


def _step(shape: Shape, tokens: int, fold: Fold) -> int | None:
    """Elements along each side of a token, best without a rest."""
    rows, columns = shape
    found = [
        step
        for step in range(1, min(shape) + 1)
        if fold(rows, step) * fold(columns, step) == tokens
    ]
    return min(found, key=lambda s: (rows % s > 0 or columns % s > 0, s), default=None)


def _mosaic(planes: list[Plane], size: Size, count: int, tile: Shape) -> Cells | None:
    """The whole picture, then its tiles put together again, with a separator behind each row.

    Rows or columns of the mosaic that are padding alone are cut. A large mosaic is shrunk.
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


# ---- sequences of patches ----------------------------------------------------------------------


def _patches(maps: Maps, side: list[np.ndarray], size: Size, count: int) -> Cells | None:
    """Of patches [sequences, patches]."""
    sequences, each = maps.x.shape
    pool = _pooling(side, maps.x.size, count)
    if pool is not None:  # whole tiles, one a sequence
        shapes: list[Shape] | None = [(math.isqrt(each), math.isqrt(each))] * sequences
    else:
        shapes = _shapes(side, maps.x.size)
    if shapes is None:  # the end of each sequence may be padding
        shown = np.zeros(maps.x.shape, dtype=bool)
        for row, inside in zip(shown, maps.inside, strict=True):
            row[: np.flatnonzero(inside > 0).max(initial=-1) + 1] = True
        maps = Maps(*(values[shown] for values in maps))
        shapes = _shapes(side, len(maps.x)) or _scanned(maps.x, maps.y, size)
    maps = Maps(*(values.ravel() for values in maps))
    if sum(rows * columns for rows, columns in shapes) != len(maps.x):
        return None
    if pool is not None:
        return _pooled(_planes(maps, shapes, None, size), pool)
    for block, fold in _blocks(shapes, count):
        for order in (None, block):
            planes = _planes(maps, shapes, order, size)
            if max(plane.misfit() for plane in planes) < 0.5:
                cells = Cells()
                for index, plane in enumerate(planes):
                    cells.add_plane(plane, index, block, fold)
                return cells
    return None


def _blocks(shapes: list[Shape], count: int) -> list[tuple[int, Fold]]:
    """Patches along each side of a token that give that many tokens, first those without a rest."""
    found = [
        (block, fold)
        for block, fold in itertools.product(range(1, _LARGEST_BLOCK + 1), (floor, ceil))
        if sum(fold(rows, block) * fold(columns, block) for rows, columns in shapes) == count
    ]
    return sorted(found, key=lambda own: any(side % own[0] for shape in shapes for side in shape))


def _planes(maps: Maps, shapes: Iterable[Shape], block: int | None, size: Size) -> list[Plane]:
    """Planes of patches that stand in rows, or in blocks: the order of their tokens."""
    planes, start = [], 0
    for rows, columns in shapes:
        order = np.arange(start, start + rows * columns).reshape(rows, columns)
        if block is not None and rows % block == 0 == columns % block:
            blocks = order.reshape(rows // block, columns // block, block, block)
            order = blocks.transpose(0, 2, 1, 3).reshape(rows, columns)
        planes.append(Plane(maps.x[order], maps.y[order], maps.inside[order], size))
        start += rows * columns
    return planes


def _pooling(side: list[np.ndarray], patches: int, count: int) -> np.ndarray | None:
    """The output that says which patches make each token, int [count, k], filled up with -1."""
    for value in side:
        wide = value.ndim == 2 and value.shape[1] > 3  # more numbers than a grid has
        if wide and len(value) == count and value.min() >= -1 and 1 < value.max() < patches:
            return value
    return None


def _pooled(planes: list[Plane], pool: np.ndarray) -> Cells:
    of_patch = [
        (plane.rect(row, column, row + 1, column + 1), plane.inside[row, column], index)
        for index, plane in enumerate(planes)
        for row, column in np.ndindex(plane.shape)
    ]
    rects = np.array([rect for rect, _, _ in of_patch])
    cells = Cells()
    for indices in pool:
        own = indices[indices >= 0]
        if not len(own):
            cells.add_separators(1, 0)
            continue
        (left, top), (right, bottom) = rects[own, :2].min(0), rects[own, 2:].max(0)
        shown = float(np.mean([of_patch[i][1] for i in own]))
        cells.add((left, top, right, bottom), 1 - shown, of_patch[own[0]][2])
    return cells


def _shapes(side: list[np.ndarray], patches: int) -> list[Shape] | None:
    """Rows and columns of patches of each plane, where another output counts them."""
    for value in side:
        if value.ndim >= 2 and value.shape[-1] in (2, 3) and value.prod(-1).sum() == patches:
            return [(int(row[-2]), int(row[-1])) for row in value.reshape(-1, value.shape[-1])]
        if value.ndim == 3 and value.shape[-1] == 2 and (value.min(-1) >= 0).sum() == patches:
            return [(int(own[:, 1].max()) + 1, int(own[:, 0].max()) + 1) for own in value]
    return None


def _scanned(x: np.ndarray, y: np.ndarray, size: Size) -> list[Shape]:
    """Rows and columns of the planes of a row-major sequence, from the places alone."""
    near_x, near_y = 4e-3 * size[0], 4e-3 * size[1]
    turns = np.flatnonzero(~((np.diff(x) > 0) & (np.abs(np.diff(y)) < near_y))) + 1
    shapes: list[Shape] = []
    for low, high in itertools.pairwise([0, *turns.tolist(), len(x)]):
        rows, columns = shapes[-1] if shapes else (0, 0)
        width = high - low
        if columns == width and y[low] > y[low - 1] and abs(x[low] - x[low - width]) < near_x:
            shapes[-1] = rows + 1, columns
        else:
            shapes.append((1, width))
    return shapes
