"""Controls: changes of a region that VRGA selected, which show what part of it matters.

Each control is a function ``(sample, Region) -> Region`` for ``VRGAHandle.region_hook``. Random
ones are determined by their seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from vrga_ext._arguments import Box
from vrga_ext.analysis.ablation import Hook
from vrga_ext.analysis.boxes import picture_tokens
from vrga_ext.geometry import token_geometry
from vrga_ext.region import HeadIndex, Region


def permuted_tokens(seed: int) -> Hook:
    """Boost as many other tokens of the picture, drawn at random; all of them, if fewer."""
    generator = torch.Generator().manual_seed(seed)

    def hook(sample: int, region: Region) -> Region:
        rest = region.image_positions[~torch.isin(region.image_positions, region.boosted)]
        order = torch.randperm(len(rest), generator=generator)
        drawn = rest[order[: len(region.boosted)]].sort().values
        return replace(region, focus=drawn, boosted=drawn)

    return hook


def all_image_tokens() -> Hook:
    """Boost every image token, in the heads that VRGA selected."""
    return lambda sample, region: replace(region, boosted=region.image_positions)


def true_region(
    boxes: Iterable[Box], sizes: Iterable[tuple[int, int]], processor: Any, config: Any
) -> Hook:
    """Boost the tokens of the ground-truth region.

    Parameters
    ----------
    boxes
        Left, top, right and bottom for each question, in the order of the task (pixels).
    sizes
        Width and height of its picture (pixels).
    processor, config
        The model's.
    """
    left = zip(boxes, sizes, strict=True)

    def hook(sample: int, region: Region) -> Region:
        box, size = next(left)
        (indices,) = picture_tokens(region.images, [size])
        geometry = token_geometry(processor, size, len(indices), config=config)
        assert geometry is not None
        tokens = region.image_positions[indices[geometry.box_tokens([box])]]
        return replace(region, focus=tokens, boosted=tokens)

    return hook


def random_heads(seed: int) -> Hook:
    """Boost in as many other heads, drawn at random; all of them, if fewer."""
    generator = torch.Generator().manual_seed(seed)

    def hook(sample: int, region: Region) -> Region:
        others = [head for head in all_heads(region) if head not in region.visual_heads]
        order = torch.randperm(len(others), generator=generator)
        drawn = order[: len(region.visual_heads)].tolist()
        return replace(region, visual_heads=tuple(others[i] for i in sorted(drawn)))

    return hook


def lowest_ratio_heads() -> Hook:
    """Boost in as many heads, those that look at the picture least."""

    def hook(sample: int, region: Region) -> Region:
        heads = all_heads(region)
        order = region.image_ratio.flatten().argsort()[: len(region.visual_heads)]
        return replace(region, visual_heads=tuple(heads[i] for i in sorted(order.tolist())))

    return hook


def these_heads(heads: tuple[HeadIndex, ...]) -> Hook:
    """Boost in the same heads for every question."""
    return lambda sample, region: replace(region, visual_heads=heads)


def all_heads(region: Region) -> list[HeadIndex]:
    """Every (layer, head), layer by layer."""
    return [(layer, head) for layer in region.layers for head in range(region.image_ratio.shape[1])]
