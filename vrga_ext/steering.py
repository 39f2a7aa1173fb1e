"""From the question rows of one sample to its :class:`Region`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.config import VRGAConfig
from vrga_ext.prompts.question import QuestionEnd
from vrga_ext.region import HeadIndex, Region
from vrga_ext.selection import Span


class Rows(NamedTuple):
    """The question rows of one layer, as ``row_statistics`` gives them."""

    image_attention: Tensor  # fp32 [B, H, columns]
    image_ratio: Tensor  # fp32 [B, H], R_img over the attended keys
    image_entropy: Tensor  # fp32 [B, H], H_img in nats

    @property
    def heads(self) -> int:
        """H, the number of query heads."""
        return self.image_ratio.shape[1]

    def of(self, row: int) -> Rows:
        """The tensors of one row, without the batch dimension."""
        return Rows(*(tensor[row] for tensor in self))


def stack_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of several layers, stacked; where all are on one device, in one copy."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.stack(list(tensors)).cpu()


def select_region(
    rows: list[Rows],
    layers: tuple[int, ...],
    positions: Tensor,
    spans: list[Span],
    end: QuestionEnd,
    attended: int,
    ratio_over: int,
    config: VRGAConfig,
) -> Region:
    """Select heads and tokens for one sample.

    Parameters
    ----------
    rows
        The sample's question row in each of the L layers.
    layers
        The model's index of each layer.
    positions : int64 [n]
        Prompt columns of the image keys.
    spans
        The sample's images.
    end
        The question row.
    attended, ratio_over
        Keys that the row attends to, and keys that ``R_img`` is to be a ratio over.
    config
        Thresholds.
    """

    def maps(heads: Tensor) -> Tensor:  # [k, n], in the order of the heads
        picked = [rows[layer].image_attention[head] for layer, head in heads.nonzero().tolist()]
        return stack_on_cpu(picked)[:, positions] if picked else torch.empty(0, len(positions))

    if config.epsilon:
        everything = stack_on_cpu([layer.image_attention for layer in rows])[..., positions]
        statistics = selection.row_statistics(everything, ratio_over, config.epsilon)
    else:
        ratio = stack_on_cpu([layer.image_ratio for layer in rows]).double()
        entropy = stack_on_cpu([layer.image_entropy for layer in rows]).double()
        statistics = selection.RowStatistics.of(ratio * (ratio_over / attended), entropy)
    visual = selection.visual_heads(statistics, config)
    background = selection.background_heads(statistics, config)
    refined = torch.zeros(len(positions), dtype=torch.float64)
    focus = boosted = torch.zeros(len(positions), dtype=torch.bool)
    if visual.any():
        refined = selection.refined_map(maps(visual), maps(background), config.background_weight)
        focus, suppressed = selection.focus_tokens(refined, spans, config)
        boosted = selection.widen_tokens(focus, suppressed, spans, config)
    return Region(
        question_end=end.position,
        question_rule=end.rule,
        image_positions=positions,
        images=tuple(spans),
        layers=layers,
        image_ratio=statistics.image_ratio,
        image_entropy=statistics.image_entropy,
        efr=statistics.efr,
        visual_heads=_pairs(visual, layers),
        background_heads=_pairs(background, layers),
        refined_map=refined,
        focus=positions[focus],
        boosted=positions[boosted],
    )


def checked_region(region: Any, found: Region, columns: int) -> Region:
    """What a region hook returned, if later steps can use it in place of ``found``.

    Raises
    ------
    TypeError
        It is no region.
    ValueError
        It names a head that the model does not have, or a column that is not of the prompt.
    """
    if not isinstance(region, Region):
        raise TypeError(f"region_hook: wanted a Region, got {type(region).__name__}")
    heads = found.image_ratio.shape[1]
    for layer, head in (*region.visual_heads, *region.background_heads):
        if layer not in found.layers or not 0 <= head < heads:
            raise ValueError(
                f"region_hook: wanted heads (layer, head) with a layer of {found.layers} and a "
                f"head below {heads}, got {(layer, head)}"
            )
    for name in ("image_positions", "boosted"):
        positions = getattr(region, name)
        if not isinstance(positions, Tensor) or positions.dtype != torch.long:
            got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
            raise TypeError(f"region_hook: wanted {name} as an int64 tensor, got {got}")
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < columns:
            raise ValueError(
                f"region_hook: wanted {name} in [0, {columns}), got {positions.tolist()}"
            )
    return region


def empty_region(end: QuestionEnd, layers: tuple[int, ...], heads: int) -> Region:
    """Region of a sample without an image."""
    none = torch.empty(0, dtype=torch.long)
    zeros = torch.zeros(len(layers), heads, dtype=torch.float64)
    return Region(
        question_end=end.position,
        question_rule=end.rule,
        image_positions=none,
        images=(),
        layers=layers,
        image_ratio=zeros,
        image_entropy=zeros,
        efr=torch.full_like(zeros, torch.inf),
        visual_heads=(),
        background_heads=(),
        refined_map=torch.empty(0, dtype=torch.float64),
        focus=none,
        boosted=none,
    )


def _pairs(heads: Tensor, layers: tuple[int, ...]) -> tuple[HeadIndex, ...]:
    return tuple((layers[layer], head) for layer, head in heads.nonzero().tolist())
