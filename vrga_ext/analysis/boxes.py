"""From boxes and masks in image pixels to the image tokens they belong to.

The patch grid divides the image evenly: a token of a grid of ``rows x columns`` stands for a cell
of ``height / rows x width / columns`` pixels, whatever size the image was resized to. A token
belongs to a box or mask that covers at least ``min_coverage`` of its cell. A box or mask that
covers no cell that far, because it is small or lies across cells, gets the cell it covers most
(several, if it covers them equally), so that no region is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrga_ext._arguments import (
    BOX,
    Box,
    as_array,
    as_numbers,
    as_size,
    as_tuples,
    check_pixels,
)
from vrga_ext.captures import Capture


def box_tokens(
    boxes: Sequence[Box],
    image_size: Sequence[float],
    grid: Sequence[int],
    *,
    min_coverage: float = 0.5,
) -> Tensor:
    """Tokens of one image that belong to any of its boxes.

    Parameters
    ----------
    boxes
        ``(left, top, right, bottom)`` in pixels of the image, right and bottom exclusive; parts
        outside the image do not count. Boxes in shares of the image's sides, all in 0 ... 1, raise:
        multiply them by width and height. So does (0, 0, 1, 1) without another box in pixels; use a
        mask for the first pixel.
    image_size
        Width and height in pixels, as ``PIL.Image.size``.
    grid
        Patch rows and columns.
    min_coverage
        Share of a token's cell that one box covers, in (0, 1].

    Returns
    -------
    bool [rows, columns]

    Raises
    ------
    ValueError
        A box is not four finite numbers, not in pixels, or empty within the image; ``image_size``
        or ``grid`` is not a pair of numbers above 0; ``min_coverage`` is out of range.

    Examples
    --------
    >>> box_tokens([(0, 0, 16, 10)], (40, 20), (2, 4))
    tensor([[ True,  True, False, False],
            [False, False, False, False]])
    """
    _check_coverage(min_coverage)
    width, height = as_size("image_size", image_size)
    rows, columns = _checked_grid(grid)
    checked = as_tuples("boxes", boxes, BOX)
    check_pixels("boxes", checked, (width, height))
    chosen = torch.zeros(rows, columns, dtype=torch.bool, device="cpu")
    for left, top, right, bottom in checked:
        across = _overlap(left, right, width, columns)
        down = _overlap(top, bottom, height, rows)
        coverage = down[:, None] * across  # [rows, columns]
        chosen |= _enough(coverage, min_coverage)
    return chosen


def mask_tokens(mask: Any, grid: Sequence[int], *, min_coverage: float = 0.5) -> Tensor:
    """Tokens of one image that belong to a mask.

    Parameters
    ----------
    mask : bool [height, width]
        Pixels of the region; an array, a tensor or a picture.
    grid, min_coverage
        As in :func:`box_tokens`.

    Returns
    -------
    bool [rows, columns]

    Raises
    ------
    ValueError
        The mask has no pixel or is not two-dimensional; ``grid`` or ``min_coverage`` as in
        :func:`box_tokens`.

    Examples
    --------
    >>> mask = torch.zeros(4, 6)
    >>> mask[:2, :3] = 1
    >>> mask_tokens(mask, (2, 3))
    tensor([[ True,  True, False],
            [False, False, False]])
    """
    _check_coverage(min_coverage)
    pixels = np.asarray(as_array(mask) != 0)
    if pixels.ndim != 2:
        raise ValueError(f"mask: wanted [height, width], got {[*pixels.shape]}")
    if not pixels.any():
        raise ValueError(f"mask: wanted at least one pixel, got none in {[*pixels.shape]}")
    share = torch.from_numpy(pixels).double()
    # Grid rows, then columns: each cell's mean over its pixels, whole or in part.
    for size in _checked_grid(grid):
        share = (_cell_weights(share.shape[0], size) @ share).T
    return _enough(share, min_coverage)


def relevant_tokens(
    capture: Capture,
    boxes: Sequence[Sequence[Box]] | None = None,
    image_sizes: Sequence[Sequence[float]] | None = None,
    *,
    masks: Sequence[Any] | None = None,
    image: int = 0,
    min_coverage: float = 0.5,
) -> Tensor:
    """Image tokens of a capture's samples that belong to each sample's boxes, or to its mask.

    Parameters
    ----------
    capture
        Of S samples and n image tokens; the patch grid of each image is the model's own.
    boxes
        A list of boxes for each prompt of the batch. A prompt with an empty list has no region, and
        needs no image.
    image_sizes
        The image's width and height in pixels for each prompt of the batch.
    masks
        Instead of these two: a mask for each prompt of the batch, or None for no region.
    image
        Index of the image among a sample's images.
    min_coverage
        As in :func:`box_tokens`.

    Returns
    -------
    bool [S, n]

    Raises
    ------
    ValueError
        There is not one entry for each prompt, no such image, or its tokens form no rectangle.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> width, height = samples[0].image.size
    >>> box = (0, 0, width / 2, height / 3)  # of 6 x 6 tokens
    >>> relevant_tokens(recording.last, [[box]], [(width, height)]).sum()
    tensor(6)
    """
    if (boxes is None) == (masks is None) or (boxes is None) != (image_sizes is None):
        arguments = {"boxes": boxes, "image_sizes": image_sizes, "masks": masks}
        got = ", ".join(name for name, value in arguments.items() if value is not None) or "none"
        raise ValueError(f"boxes, image_sizes, masks: wanted the first two, or masks, got {got}")
    count = len(capture.regions)
    for name, given in (("boxes", boxes), ("image_sizes", image_sizes), ("masks", masks)):
        if given is not None and len(given) != count:
            raise ValueError(
                f"{name}: wanted one for each prompt of the batch ({count}), got {len(given)}"
            )
    if boxes is not None:
        per_prompt: Sequence[Any] = [as_tuples("boxes", own, BOX) or None for own in boxes]
    else:
        assert masks is not None
        per_prompt = masks
    chosen = torch.zeros(capture.image_positions.shape, dtype=torch.bool, device="cpu")
    for sample, spans in enumerate(capture.images):
        prompt = sample // capture.copies
        if per_prompt[prompt] is None:
            continue
        if not 0 <= image < len(spans):
            raise ValueError(f"image: wanted one of {len(spans)} of sample {sample}, got {image}")
        span = spans[image]
        if span.grid is None:
            raise ValueError(
                f"image: wanted one whose tokens form a rectangle, got image {image} of sample "
                f"{sample}, whose {span.length} tokens have no known grid"
            )
        if image_sizes is None:
            cells = mask_tokens(per_prompt[prompt], span.grid, min_coverage=min_coverage)
        else:
            size = as_size("image_sizes", image_sizes[prompt])
            cells = box_tokens(per_prompt[prompt], size, span.grid, min_coverage=min_coverage)
        first = span.start + span.lead
        chosen[sample, first : first + cells.numel()] = cells.flatten()
    return chosen


def _overlap(low: float, high: float, size: float, cells: int) -> Tensor:
    """Share of each of the cells of one axis that lies between two pixels, fp64 [cells]."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device="cpu") * (size / cells)
    inside = edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)
    return inside.clamp(min=0) / (size / cells)


def _cell_weights(pixels: int, cells: int) -> Tensor:
    """Weight of each pixel in each cell's mean, fp64 [cells, pixels]."""
    width = pixels / cells
    low = torch.arange(cells, dtype=torch.float64, device="cpu")[:, None] * width
    pixel = torch.arange(pixels, dtype=torch.float64, device="cpu")
    inside = (pixel + 1).minimum(low + width) - pixel.maximum(low)
    return inside.clamp(min=0) / width


def _enough(coverage: Tensor, min_coverage: float) -> Tensor:
    wanted = min(min_coverage, float(coverage.max())) * (1 - 1e-9)  # rounding of cell edges
    return (coverage >= wanted) & (coverage > 0)


def _checked_grid(grid: Sequence[int]) -> list[int]:
    sides = as_numbers("grid", grid, "(rows, columns)", whole=True)
    if min(sides) < 1:
        raise ValueError(f"grid: wanted (rows, columns) of at least 1 each, got {grid!r}")
    return sides


def _check_coverage(min_coverage: float) -> None:
    if not 0 < min_coverage <= 1:
        raise ValueError(f"min_coverage: wanted a number in (0, 1], got {min_coverage!r}")
