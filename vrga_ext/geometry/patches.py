"""Sequences of patches, of one plane or of several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from vrga_ext.geometry.cells import Cells, Fold, Maps, Shape, ceil, floor
from vrga_ext.geometry.planes import Plane
from vrga_ext.geometry.ramps import Size

_LARGEST_BLOCK = 8  # patches along one side of a token


def patch_cells(maps: Maps, side: list[np.ndarray], size: Size, count: int) -> Cells | None:
    """Divide patches among ``count`` tokens; None if the number does not add up.

    Parameters
    ----------
    maps : [sequences, patches]
        Of the patches, padded at the end.
    side
        Other outputs of the processor, which may count patches or say which make a token.
    size
        Width and height of the picture (pixels).
    count
        Number of image tokens.
    """
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
