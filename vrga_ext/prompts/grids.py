"""Patch grids that the processor returns: ``image_grid_thw`` and ``video_grid_thw``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Values of ``mm_token_type_ids``; a third one is text.
IMAGE_TYPE, VIDEO_TYPE = 1, 2
# Argument with the grids of a type: int64 [images, 3]; frames, rows and columns of patches.
GRID_ARGUMENTS = {IMAGE_TYPE: "image_grid_thw", VIDEO_TYPE: "video_grid_thw"}


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
