r"""From attention statistics at the question to heads and tokens: pure functions on tensors.

One sample at a time. ``image_attention`` [L, H, n] is the attention of the question's last token in
every head, on the n image keys; L counts the full-attention layers. Paper sections 3 and 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrga_ext.config import VRGAConfig


class RowStatistics(NamedTuple):
    """Statistics of one query of one sample, for every head of every layer.

    Attributes
    ----------
    image_ratio : float64 [L, H]
        R_img, mean attention on image keys over mean attention (no unit).
    image_entropy : float64 [L, H]
        H_img, entropy of the attention inside the image (nats).
    efr : float64 [L, H]
        Entropy-focus ratio ``H_img / R_img`` (nats). A low one means: concentrated, and on the
        image.

    Examples
    --------
    >>> RowStatistics.from_ratio(torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, 0.0]])).efr
    tensor([[4., inf]])
    """

    image_ratio: Tensor
    image_entropy: Tensor
    efr: Tensor

    @classmethod
    def from_ratio(cls, ratio: Tensor, entropy: Tensor, epsilon: float = 0.0) -> RowStatistics:
        """With ``EFR = H / (R + epsilon)``, which is +inf where R + epsilon is 0.

        Parameters
        ----------
        ratio, entropy : [L, H]
            R_img (no unit) and H_img (nats).
        epsilon
            Added to R_img (no unit).
        """
        seen = ratio + epsilon
        efr = torch.where(seen > 0, entropy / torch.where(seen > 0, seen, 1.0), torch.inf)
        return cls(ratio, entropy, torch.where(torch.isnan(ratio), torch.nan, efr))


class Span(NamedTuple):
    """One image (or video frame) within the image tokens of a sample.

    Attributes
    ----------
    start : int
        Index of its first token among the sample's image tokens.
    length : int
        Number of its tokens, leading ones included.
    lead : int
        Tokens before the first patch: 1 if a start token counts with the image, else 0.
    grid : (int, int), optional
        Patch rows and columns, in row-major order; None if the tokens form no rectangle.

    Examples
    --------
    The second image of a prompt, 2 x 3 tokens behind the 4 of the first one:

    >>> span = Span(start=4, length=6, lead=0, grid=(2, 3))
    >>> list(range(span.start + span.lead, span.start + span.length))
    [4, 5, 6, 7, 8, 9]
    """

    start: int
    length: int
    lead: int
    grid: tuple[int, int] | None


def row_statistics(image_attention: Tensor, attended: int, epsilon: float = 0.0) -> RowStatistics:
    r"""R_img, H_img and EFR from the attention of one query on the image.

    ``R = (sum_V a) * M / n`` and ``H = -sum_V ã log(ã + ε)`` with ``ã = a / (sum_V a + ε)``.

    Parameters
    ----------
    image_attention : [L, H, n]
        Shares of all attention.
    attended : int
        M, the number of keys over which the ratio is taken.
    epsilon : float
        ε of the released code; with 0 the entropy is exact, and a head without attention on the
        image has EFR = +inf.

    Examples
    --------
    >>> row_statistics(torch.tensor([[[0.25, 0.25]]]), attended=4).image_ratio
    tensor([[1.]], dtype=torch.float64)
    """
    a = image_attention.double()
    n = a.shape[-1]
    share = a.sum(-1)  # [L, H]
    ratio = share * attended / max(n, 1)
    inside = a / torch.where(share + epsilon == 0, 1.0, share + epsilon)[..., None]
    entropy = -torch.where(inside > 0, inside * torch.log(inside + epsilon), 0.0).sum(-1)
    return RowStatistics.from_ratio(ratio, entropy, epsilon)


def visual_heads(statistics: RowStatistics, config: VRGAConfig) -> Tensor:
    """H_v as bool [L, H]: EFR at or below its percentile and R_img at or above its own.

    Heads whose EFR or R_img is not finite do not count. If no head meets both conditions, that on
    R_img decides alone. Percentiles interpolate linearly.

    Examples
    --------
    >>> stats = RowStatistics(*torch.tensor([[[0.1, 2.0]], [[1.0, 1.0]], [[10.0, 0.5]]]).double())
    >>> visual_heads(stats, VRGAConfig())
    tensor([[False,  True]])
    """
    ratio, efr = statistics.image_ratio, statistics.efr
    finite = torch.isfinite(ratio) & torch.isfinite(efr)
    if not finite.any():
        return torch.zeros_like(finite)
    focused = finite & (efr <= _percentile(efr[finite], config.efr_percentile))
    looking = finite & (ratio >= _percentile(ratio[finite], config.ratio_percentile))
    both = focused & looking
    return both if both.any() else looking


def background_heads(statistics: RowStatistics, config: VRGAConfig) -> Tensor:
    """H_b as bool [L, H]: R_img below its bound, among the first heads in layer-major order.

    Examples
    --------
    >>> stats = RowStatistics(*torch.tensor([[[0.001, 2.0]], [[1.0, 1.0]], [[1e3, 0.5]]]).double())
    >>> background_heads(stats, VRGAConfig())
    tensor([[ True, False]])
    """
    ratio = statistics.image_ratio
    order = torch.arange(ratio.numel(), device=ratio.device).view_as(ratio)
    return (order < config.background_first_heads) & (ratio < config.background_max_ratio)


def refined_map(visual: Tensor, background: Tensor, weight: float = 1.0) -> Tensor:
    """Mean map of the visual heads minus the background heads', [n] in fp64.

    Each mean is normalised to sum 1, the difference clamped at 0 and normalised again. Without a
    background head the result is the visual heads' mean as it is; if everything clamps to 0, it is
    their normalised mean.

    Parameters
    ----------
    visual, background : [k, n]
        Image attention of the k visual heads (at least one) and of the background heads.
    weight
        λ, the weight of the background map.

    Examples
    --------
    >>> refined_map(torch.tensor([[0.2, 0.6]]), torch.tensor([[0.1, 0.1]]))
    tensor([0., 1.], dtype=torch.float64)
    """
    seen = visual.double().mean(0)  # [n]
    if not len(background):
        return seen
    seen = _normalised(seen)
    refined = (seen - weight * _normalised(background.double().mean(0))).clamp(min=0)
    return _normalised(refined) if refined.sum() > 0 else seen


def border_sinks(span: Span, max_share: float) -> Tensor:
    """Indices within one image where attention sinks sit: corner, top row, left column.

    The top-left 2x2 corner first, then the rest of grid row 0, then the rest of grid column 0, cut
    at ``max_share`` of the image's keys. Grid rows count from the span's first key, so a leading
    token shifts them, as in the released code. Empty without a grid.

    Examples
    --------
    >>> border_sinks(Span(0, 16, 0, (4, 4)), 0.5).tolist()
    [0, 1, 4, 5, 2, 3, 8, 12]
    """
    if span.grid is None:
        return torch.empty(0, dtype=torch.long, device="cpu")
    columns = span.grid[1]
    corner = [0, 1, columns, columns + 1]
    border = dict.fromkeys(
        corner + list(range(2, columns)) + list(range(2 * columns, span.length, columns))
    )
    inside = [index for index in border if index < span.length]
    return torch.tensor(inside[: int(max_share * span.length)], dtype=torch.long, device="cpu")


def focus_tokens(refined: Tensor, spans: list[Span], config: VRGAConfig) -> tuple[Tensor, Tensor]:
    """T_q before widening, and the suppressed border keys, both bool [n].

    A key counts where the refined map exceeds ``mean + focus_std * std`` (sample deviation), taken
    over the keys that are not suppressed. If fewer than ``focus_min_tokens`` do, the keys with the
    largest values count.

    Examples
    --------
    >>> config = VRGAConfig(focus_min_tokens=1)
    >>> focus_tokens(torch.tensor([0.0, 0.1, 0.9]), [Span(0, 3, 0, None)], config)[0]
    tensor([False, False,  True])
    """
    suppressed = torch.zeros(refined.shape[0], dtype=torch.bool, device=refined.device)
    if config.border_suppression:
        for span in spans:
            suppressed[
                span.start + border_sinks(span, config.border_max_share).to(refined.device)
            ] = True
    kept = refined[~suppressed]
    if kept.numel() == 0:
        return torch.zeros_like(suppressed), suppressed
    spread = kept.std(correction=1) if kept.numel() > 1 else torch.zeros_like(kept[0])
    focus = (refined > kept.mean() + config.focus_std * spread) & ~suppressed
    wanted = min(config.focus_min_tokens, kept.numel())
    if int(focus.sum()) < wanted:
        largest = refined.masked_fill(suppressed, -torch.inf).topk(wanted).indices
        focus = torch.zeros_like(suppressed)
        focus[largest] = True
    return focus, suppressed


def widen_tokens(
    focus: Tensor, suppressed: Tensor, spans: list[Span], config: VRGAConfig
) -> Tensor:
    """T_q as boosted, bool [n]: each key of ``focus`` and its neighbours within the same image.

    On a grid the neighbourhood is a square of side ``2 * widen + 1``, without suppressed keys.
    Along the sequence it runs in row-major order, from the end of one grid row to the start of the
    next, and includes suppressed keys.

    Examples
    --------
    >>> focus = torch.tensor([False, False, False, False, True, False, False, False, False])
    >>> spans = [Span(0, 9, 0, (3, 3))]
    >>> widen_tokens(focus, torch.zeros(9, dtype=torch.bool), spans, VRGAConfig()).sum()
    tensor(9)
    """
    boosted = torch.zeros_like(focus)
    for span in spans:
        window = slice(span.start, span.start + span.length)
        seeds = focus[window].clone()
        seeds[: config.skip_leading_tokens] = False
        if config.neighbourhood == "grid" and span.grid is not None:
            cells = _dilate(seeds[span.lead :].view(1, *span.grid), config.widen).flatten()
            boosted[window] = torch.cat([seeds[: span.lead], cells]) & ~suppressed[window]
        else:
            boosted[window] = _dilate(seeds[None, None], config.widen, flat=True).flatten()
    return boosted


def _percentile(values: Tensor, percent: float) -> Tensor:
    return torch.quantile(values, percent / 100.0)


def _normalised(a: Tensor) -> Tensor:
    total = a.sum()
    return a / total if total > 0 else a


def _dilate(seeds: Tensor, radius: int, *, flat: bool = False) -> Tensor:
    """Binary dilation of bool [1, rows, columns] by a square, or within grid rows if flat."""
    size = (1 if flat else 2 * radius + 1, 2 * radius + 1)
    padding = (0 if flat else radius, radius)
    return torch.nn.functional.max_pool2d(seeds.float(), size, 1, padding).bool()
