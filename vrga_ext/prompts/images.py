"""Where the images are: image tokens of a prompt, one span per image, and its patch grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import ImageSpan
from vrga_ext.selection import Span

# Values of ``mm_token_type_ids``; a third one is text.
IMAGE_TYPE, VIDEO_TYPE = 1, 2
# Argument with the grids of a type: int64 [images, 3]; frames, rows and columns of patches.
GRID_ARGUMENTS = {IMAGE_TYPE: "image_grid_thw", VIDEO_TYPE: "video_grid_thw"}


def image_mask(input_ids: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """Image tokens of a prompt, where the model itself puts image features, bool [B, S].

    Found by token id, since the processor's token types also mark audio and the tokens around an
    image.

    Parameters
    ----------
    input_ids : int64 [B, S]
        The tokens.
    token_ids
        Ids of the placeholder tokens.

    Examples
    --------
    >>> image_mask(torch.tensor([[7, 5, 5, 8]]), (5,))
    tensor([[False,  True,  True, False]])
    """
    return torch.isin(input_ids, torch.tensor(token_ids, dtype=torch.long, device=input_ids.device))


def config_grid(config: Any) -> tuple[int, int] | None:
    """Token rows and columns of every picture, tile or frame, for a model with one size of them.

    The patches of the vision tower, divided by the merging that the configuration names. None
    where pictures vary in size, where tiles are cropped to the picture afterwards, and where
    learned queries read the patches.
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


# Patches per token along one axis; True where the field is the inverse of that.
_MERGED = {
    "downsample_factor": False,
    "scale_factor": False,
    "hidden_stride": False,
    "downsample_ratio": True,
    "pixel_shuffle_ratio": True,
}
# Fields of models whose pictures keep their shape.
_VARYING = ("spatial_merge_size", "merge_kernel_size", "pooling_kernel_size")
# Fields of models in which learned queries read the patches, one token each.
_QUERIES = ("num_query_tokens", "latent_query_num")


def _pair(config: Any, name: str) -> tuple[int, int] | None:
    """Height and width, from a field that is one number for both or a pair."""
    value = getattr(config, name, None)
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None


def image_runs(mask: Tensor) -> list[tuple[int, int]]:
    """Start and length of each run of consecutive image tokens of one sample.

    Parameters
    ----------
    mask : bool [S]
        Image tokens.

    Examples
    --------
    >>> image_runs(torch.tensor([False, True, True, False, True]))
    [(1, 2), (4, 1)]
    """
    outside = torch.zeros(1, dtype=torch.int)
    edges = torch.diff(mask.int(), prepend=outside, append=outside)
    starts = (edges == 1).nonzero().flatten().tolist()
    ends = (edges == -1).nonzero().flatten().tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def image_span_mask(mask: Tensor, image_spans: Sequence[ImageSpan]) -> Tensor:
    """V, bool [B, S]: the image tokens, and with ``"vision_span"`` the token before each run.

    Parameters
    ----------
    mask : bool [B, S]
        Image tokens.
    image_spans : sequence of B
        Of each sequence, as in :class:`vrga_ext.VRGAConfig`.

    Examples
    --------
    >>> image_span_mask(torch.tensor([[False, True, True]]), ["vision_span"])
    tensor([[True, True, True]])
    """
    if "vision_span" not in image_spans:
        return mask
    widened = torch.tensor([span == "vision_span" for span in image_spans], device=mask.device)
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return mask | (following & ~mask & widened[:, None])


def image_spans(
    image: Tensor, keys: Tensor, axes: Tensor | None, fixed_grid: tuple[int, int] | None
) -> tuple[Tensor, list[Span]]:
    """Image positions of one sample and how they divide into images.

    Parameters
    ----------
    image : bool [S]
        Image tokens of the sample.
    keys : bool [S]
        V: these, and the tokens counted with them.
    axes : int64 [3, S], optional
        Time, height and width of each token, of a model with multi-axis rotary positions.
    fixed_grid
        Grid of a model whose images all have one size; a longer run of image tokens is divided
        into images of that size.

    Returns
    -------
    positions : int64 [n]
        Positions of V in the prompt, ascending.
    spans : list of Span
        One per image, in the same order; their indices are into ``positions``.
    """
    positions: list[Tensor] = []
    spans: list[Span] = []
    n = 0
    for start, length in image_runs(image):
        for first, size, grid in _divide(start, length, axes, fixed_grid):
            lead = int(first == start and first > 0 and bool(keys[first - 1]))
            positions.append(torch.arange(first - lead, first + size))
            spans.append(Span(n, lead + size, lead, grid))
            n += lead + size
    return torch.cat(positions) if positions else torch.empty(0, dtype=torch.long), spans


def _divide(
    start: int, length: int, axes: Tensor | None, fixed_grid: tuple[int, int] | None
) -> list[tuple[int, int, tuple[int, int] | None]]:
    """Divide one run of image tokens into images: (first position, length, grid) of each."""
    if axes is not None:
        run = axes[:, start : start + length]
        if (run[1:] != run[0]).any():  # else the axes count tokens, as they do for text
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
    """Indices in axes [3, n] at which another image or frame starts, except the first.

    There time moves on, or the row-major scan starts again: frames of a fast video share a time.
    """
    time, row, column = torch.diff(run)
    again = (row < 0) | ((row == 0) & (column <= 0))
    return ((time != 0) | again).nonzero().flatten().add(1).tolist()


def _grid_of(cells: Tensor) -> tuple[int, int] | None:
    """Grid rows and columns of row-major cells [2, n]; None if they form no rectangle."""
    cells = cells - cells.amin(1, keepdim=True)
    rows, columns = (cells.amax(1) + 1).tolist()
    n = torch.arange(cells.shape[1], device=cells.device)
    if rows * columns != cells.shape[1]:
        return None
    if not torch.equal(cells, torch.stack([n // columns, n % columns])):
        return None
    return rows, columns


def merge_size(config: Any) -> int:
    """Patches along each side of a token; 1 if the vision configuration has no such field."""
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
        The processor's token types; without them the ids decide.
    video_ids
        Ids of the placeholder tokens that only videos use.
    """
    if token_types is not None and token_types.shape == image.shape:
        return token_types.long() * image
    video = torch.isin(ids, torch.tensor(video_ids, dtype=torch.long)) & image
    return torch.where(video, VIDEO_TYPE, image.long() * IMAGE_TYPE)


def grid_axes(kinds: Tensor, grids: Mapping[int, Tensor], merge: int) -> tuple[Tensor, Tensor]:
    """Frame, grid row and grid column of every image token of a batch.

    Frames count down from -1 through all images, so that each has its own number.

    Parameters
    ----------
    kinds : int64 [B, S]
        Type of each token.
    grids : mapping from type to int64 [images, 3]
        Frames, rows and columns of patches of each image, in the order of the samples.
    merge
        Patches along each side of a token.

    Returns
    -------
    axes : int64 [3, B, S]
    known : bool [B, S]
        Tokens for which ``axes`` holds; False for a type whose grids do not match its tokens.
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
