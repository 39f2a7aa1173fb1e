"""Where the images are: image tokens of a prompt, one span per image, and its patch grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import ImageSpan
from vrga_ext.selection import Span

# Values of ``mm_token_type_ids``; a third one is text.
IMAGE_TYPE, VIDEO_TYPE = 1, 2
# The argument that holds the grids of a type: int64 [images, 3], frames, rows, columns of patches.
GRID_ARGUMENTS = {IMAGE_TYPE: "image_grid_thw", VIDEO_TYPE: "video_grid_thw"}


def image_mask(input_ids: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """Image tokens of a prompt as bool [B, S]: where the model itself puts image features.

    The processor's token types are no help: they mark audio and the tokens around an image too.
    """
    return torch.isin(input_ids, torch.tensor(token_ids, dtype=torch.long, device=input_ids.device))


def config_grid(config: Any) -> tuple[int, int] | None:
    """Token grid of a model whose pictures, tiles or frames all have one size.

    The patches of the vision tower, less what the configuration says is merged behind it. None
    where pictures vary in size, are cut to their shape after they were tiled, or are read by
    queries.
    """
    vision = getattr(config, "vision_config", None)
    size, patch = _pair(vision, "image_size"), _pair(vision, "patch_size")
    if size is None or patch is None or getattr(config, "image_grid_pinpoints", None) is not None:
        return None
    gridless = _VARYING + _QUERIES
    if any(getattr(part, name, None) is not None for part in (config, vision) for name in gridless):
        return None
    if tokens := getattr(config, "mm_tokens_per_image", None):
        side = math.isqrt(tokens)
        return (side, side) if side * side == tokens else None
    merged = Fraction(1)
    for part, (name, inverse) in itertools.product((config, vision), _MERGED.items()):
        if factor := getattr(part, name, None):
            merged *= Fraction(factor) ** (-1 if inverse else 1)
    grid = [Fraction(side // step) / merged for side, step in zip(size, patch, strict=True)]
    if any(side < 1 or side.denominator != 1 for side in grid):
        return None
    return int(grid[0]), int(grid[1])


# Patches that become one token along one axis; True where the name stands for the inverse.
_MERGED = {
    "downsample_factor": False,
    "scale_factor": False,
    "hidden_stride": False,
    "downsample_ratio": True,
    "pixel_shuffle_ratio": True,
}
# Merging in models whose pictures keep their shape.
_VARYING = ("spatial_merge_size", "merge_kernel_size", "pooling_kernel_size")
# Queries that read the patches, each of them a token.
_QUERIES = ("num_query_tokens", "latent_query_num")


def _pair(config: Any, name: str) -> tuple[int, int] | None:
    """A height and a width that may be given as one number."""
    value = getattr(config, name, None)
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None


def image_runs(mask: Tensor) -> list[tuple[int, int]]:
    """Start and length of each run of consecutive image tokens of one row, bool [S]."""
    outside = torch.zeros(1, dtype=torch.int)
    edges = torch.diff(mask.int(), prepend=outside, append=outside)
    starts = (edges == 1).nonzero().flatten().tolist()
    ends = (edges == -1).nonzero().flatten().tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def image_span_mask(mask: Tensor, image_span: ImageSpan) -> Tensor:
    """V as bool [B, S]: the image tokens, and with ``"vision_span"`` the token before each run."""
    if image_span == "tokens":
        return mask
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return mask | (following & ~mask)


def image_spans(
    image: Tensor, keys: Tensor, positions: Tensor | None, fixed_grid: tuple[int, int] | None
) -> tuple[Tensor, list[Span]]:
    """Image positions of one row and how they divide into images.

    Parameters
    ----------
    image, keys : bool [S]
        Image tokens of the row, and V: the same and the tokens counted with them.
    positions : int64 [3, S], optional
        Time, height and width positions of a model with multi-axis rotary positions.
    fixed_grid
        Grid of a model whose images all have one size; a longer run of image tokens is divided
        into images of that size.

    Returns
    -------
    positions : int64 [n]
        Columns of V, ascending.
    spans : list of Span
        One per image, in the same order, indices into ``positions``.
    """
    columns: list[Tensor] = []
    spans: list[Span] = []
    n = 0
    for start, length in image_runs(image):
        for first, size, grid in _divide(start, length, positions, fixed_grid):
            lead = int(first == start and first > 0 and bool(keys[first - 1]))
            columns.append(torch.arange(first - lead, first + size))
            spans.append(Span(n, lead + size, lead, grid))
            n += lead + size
    return torch.cat(columns) if columns else torch.empty(0, dtype=torch.long), spans


def _divide(
    start: int, length: int, positions: Tensor | None, fixed_grid: tuple[int, int] | None
) -> list[tuple[int, int, tuple[int, int] | None]]:
    """Divide one run of image tokens into images: (first column, length, grid) of each."""
    if positions is not None:
        run = positions[:, start : start + length]
        if (run[1:] != run[0]).any():  # else the positions count tokens, as they do for text
            bounds = [0, *_starts(run), length]
            return [
                (start + low, high - low, _grid_of(run[1:, low:high]))
                for low, high in itertools.pairwise(bounds)
            ]
    size = math.prod(fixed_grid) if fixed_grid is not None else 0
    if size and length % size == 0:
        return [(start + offset, size, fixed_grid) for offset in range(0, length, size)]
    return [(start, length, None)]


def _starts(run: Tensor) -> list[int]:
    """Where in positions [3, n] another image or frame starts, the first one left out.

    Time moves on, or the row-major scan begins anew: frames of a fast video share a time.
    """
    time, row, column = torch.diff(run)
    again = (row < 0) | ((row == 0) & (column <= 0))
    return ((time != 0) | again).nonzero().flatten().add(1).tolist()


def _grid_of(cells: Tensor) -> tuple[int, int] | None:
    """Rows and columns of row-major positions [2, n], or None if they form no rectangle."""
    cells = cells - cells.amin(1, keepdim=True)
    rows, columns = (cells.amax(1) + 1).tolist()
    n = torch.arange(cells.shape[1], device=cells.device)
    if rows * columns != cells.shape[1]:
        return None
    if not torch.equal(cells, torch.stack([n // columns, n % columns])):
        return None
    return rows, columns


def merge_size(config: Any) -> int:
    """Patches along each side of a token; 1 where the vision configuration does not name it."""
    return getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)


def token_kinds(
    image: Tensor, ids: Tensor, token_types: Tensor | None, video_ids: tuple[int, ...]
) -> Tensor:
    """Type of each token, int64 [B, S], 0 for text.

    Parameters
    ----------
    image : bool [B, S]
        Image and video tokens.
    ids : int64 [B, S]
        The tokens.
    token_types : [B, S], optional
        The processor's token types; without them the ids tell.
    video_ids
        Ids of the placeholder tokens that only videos are written to.
    """
    if token_types is not None and token_types.shape == image.shape:
        return token_types.long() * image
    video = torch.isin(ids, torch.tensor(video_ids, dtype=torch.long)) & image
    return torch.where(video, VIDEO_TYPE, image.long() * IMAGE_TYPE)


def grid_axes(kinds: Tensor, grids: Mapping[int, Tensor], merge: int) -> tuple[Tensor, Tensor]:
    """Frame, row and column of every image token of a prompt.

    Frames are counted down from -1 through all images, so that no two have the same.

    Parameters
    ----------
    kinds : int64 [B, S]
        Type of each token.
    grids : mapping from type to int64 [images, 3]
        Frames, rows and columns of patches of each image, in the order of the prompt's rows.
    merge
        Patches along each side of a token.

    Returns
    -------
    axes : int64 [3, B, S]
    known : bool [B, S]
        Tokens that ``axes`` holds for; none of a type whose grids do not count its tokens.
    """
    axes = torch.zeros(3, *kinds.shape, dtype=torch.long)
    known = torch.zeros(kinds.shape, dtype=torch.bool)
    for kind, patches in grids.items():
        cells, frame = [], 0
        for frames, rows, columns in patches.tolist():
            sides = -frame - 1 - torch.arange(frames), rows // merge, columns // merge
            cells.append(torch.cartesian_prod(sides[0], *map(torch.arange, sides[1:])))
            frame += frames
        tokens = kinds == kind
        if sum(map(len, cells)) == int(tokens.sum()) > 0:
            axes[:, tokens] = torch.cat(cells).T
            known |= tokens
    return axes, known
