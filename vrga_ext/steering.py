"""From question statistics to one Region per sample.

The module imports no engine. An engine reads the statistics in the prompt, and applies what
:mod:`vrga_ext.plan` makes of the regions in each decode step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.config import VRGAConfig
from vrga_ext.prompts.question import QuestionEnd
from vrga_ext.region import HeadIndex, Region
from vrga_ext.selection import Span


class QuestionStatistics(NamedTuple):
    """Attention of one layer's question tokens, as :func:`vrga_ext.ops.row_statistics` gives it.

    Attributes
    ----------
    image_attention : float32 [B, H, N]
        Attention on each of the prompt's N positions; 0 where there is no image token.
    image_ratio : float32 [B, H]
        R_img over the attended keys (no unit).
    image_entropy : float32 [B, H]
        H_img (nats).

    Examples
    --------
    >>> found = QuestionStatistics(torch.zeros(2, 8, 5), torch.ones(2, 8), torch.ones(2, 8))
    >>> found.image_ratio.shape
    torch.Size([2, 8])
    """

    image_attention: Tensor
    image_ratio: Tensor
    image_entropy: Tensor


def stack_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of several layers on the CPU, with a single copy if they share a device.

    Parameters
    ----------
    tensors : sequence of L tensors [...]
        Of one shape and dtype.

    Returns
    -------
    [L, ...]

    Examples
    --------
    >>> stack_on_cpu([torch.zeros(3), torch.ones(3)]).shape
    torch.Size([2, 3])
    """
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            return torch.stack([tensor.cpu() for tensor in tensors])
    return torch.stack(list(tensors)).cpu()


def select_region(
    found: Sequence[QuestionStatistics],
    index: int,
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
    found : sequence of L QuestionStatistics
        Of B sequences, in each layer.
    index : int
        The sample's sequence among them.
    layers : tuple of L int
        The model's index of each layer.
    positions : int64 [n]
        Positions of the image tokens in the prompt.
    spans : list of Span
        The sample's images.
    end : QuestionEnd
        The token whose attention was read.
    attended : int
        Keys that it attends to.
    ratio_over : int
        Keys over which the mean in the denominator of ``R_img`` is taken.
    config : VRGAConfig
        Thresholds.

    Returns
    -------
    Region
        Without visual heads, nothing is boosted.

    Examples
    --------
    >>> attention = torch.tensor([[[0.0, 0.9, 0.0], [0.1, 0.1, 0.1]]])  # 2 heads, 3 positions
    >>> ratio, entropy = torch.tensor([[1.8, 0.4]]), torch.tensor([[0.1, 0.6]])
    >>> region = select_region(
    ...     [QuestionStatistics(attention, ratio, entropy)], 0, (5,), torch.tensor([0, 1]),
    ...     [Span(0, 2, 0, (1, 2))], QuestionEnd(2, "given"),
    ...     attended=3, ratio_over=3, config=VRGAConfig.paper(),
    ... )
    >>> region.visual_heads, region.focus
    (((5, 0),), tensor([1]))
    """
    if config.epsilon:
        everything = stack_on_cpu([layer.image_attention[index] for layer in found])[..., positions]
        statistics = selection.row_statistics(everything, ratio_over, config.epsilon)
    else:
        ratio = stack_on_cpu([layer.image_ratio[index] for layer in found]).double()
        entropy = stack_on_cpu([layer.image_entropy[index] for layer in found]).double()
        statistics = selection.RowStatistics.from_ratio(ratio * (ratio_over / attended), entropy)
    visual = selection.visual_heads(statistics, config)
    background = selection.background_heads(statistics, config)
    refined = torch.zeros(len(positions), dtype=torch.float64)
    focus = boosted = torch.zeros(len(positions), dtype=torch.bool)
    if visual.any():
        refined = selection.refined_map(
            _maps(found, index, visual)[:, positions],
            _maps(found, index, background)[:, positions],
            config.background_weight,
        )
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


def _maps(found: Sequence[QuestionStatistics], index: int, heads: Tensor) -> Tensor:
    """Image attention [k, N] of a sequence in the k heads of bool [L, H], in their order."""
    picked = [found[layer].image_attention[index, head] for layer, head in heads.nonzero().tolist()]
    return stack_on_cpu(picked) if picked else torch.empty(0, found[0].image_attention.shape[2])


def guided_region(
    found: Region, boosted: Tensor | None, heads: Sequence[HeadIndex] | None
) -> Region:
    """A region with the tokens and heads that were said by hand.

    Parameters
    ----------
    found : Region
        What was selected.
    boosted : int64 [m], optional
        Positions of the tokens; None: the selected ones.
    heads : sequence of (layer, head), optional
        None: the selected visual heads.

    Raises
    ------
    ValueError
        A head that the model does not have, or that VRGA leaves alone.
    """
    if boosted is not None:
        found = replace(found, focus=boosted, boosted=boosted)
    if heads is None:
        return found
    _check_heads("heads", heads, found)
    return replace(found, visual_heads=tuple(heads))


def _check_heads(name: str, pairs: Sequence[HeadIndex], found: Region) -> None:
    heads = found.image_ratio.shape[1]
    for layer, head in pairs:
        if layer not in found.layers or not 0 <= head < heads:
            raise ValueError(
                f"{name}: wanted heads (layer, head) with a layer of {found.layers} and a "
                f"head below {heads}, got {(layer, head)}"
            )


def checked_region(region: Any, found: Region, length: int) -> Region:
    """Check what a region hook returned, before it replaces ``found``.

    Parameters
    ----------
    region
        What the hook returned.
    found : Region
        What the hook was given.
    length : int
        Positions of the prompt.

    Returns
    -------
    Region
        ``region``.

    Raises
    ------
    TypeError
        It is not a Region, or its positions are not int64 tensors.
    ValueError
        It names a head that the model does not have, or a position outside the prompt.
    """
    if not isinstance(region, Region):
        raise TypeError(f"region_hook: wanted a Region, got {type(region).__name__}")
    _check_heads("region_hook", (*region.visual_heads, *region.background_heads), found)
    for name in ("image_positions", "boosted"):
        positions = getattr(region, name)
        if not isinstance(positions, Tensor) or positions.dtype != torch.long:
            got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
            raise TypeError(f"region_hook: wanted {name} as an int64 tensor, got {got}")
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < length:
            raise ValueError(
                f"region_hook: wanted {name} in [0, {length}), got {positions.tolist()}"
            )
    return region


def empty_region(end: QuestionEnd, layers: tuple[int, ...], heads: int) -> Region:
    """Region of a sample without an image: every statistic 0, no head and no token selected."""
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
    pairs = [(layers[layer], head) for layer, head in heads.nonzero().tolist()]
    return tuple(pairs)
