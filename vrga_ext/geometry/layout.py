"""From elements and the number of image tokens to the rectangle of each token."""

from __future__ import annotations

import numpy as np

from vrga_ext.geometry.cells import Cells, Fold, Maps, Shape, ceil, floor
from vrga_ext.geometry.mosaic import mosaic_cells
from vrga_ext.geometry.patches import patch_cells
from vrga_ext.geometry.planes import Plane, finite_mean
from vrga_ext.geometry.ramps import Elements, Size


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
    return patch_cells(sequences, elements.side, size, count)


def _pixels(planes: list[Plane], size: Size, count: int, tile: Shape | None) -> Cells | None:
    cells = Cells()
    if tile is not None and len(planes) > 1:
        return mosaic_cells(planes, size, count, tile)
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
